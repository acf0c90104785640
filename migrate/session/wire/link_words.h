// How the source's watch is told by its command line how to ask the destination: paths and options, no secrets.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "migrate/session/base/options.h"

namespace migrate {

/// "cacert=/etc/migrate/ca.crt", ...; what is not set is left out.
std::vector<std::string> words_of(const LinkOptions& link);
/// Refusal at a word that words_of() never says.
LinkOptions link_from_words(std::span<char* const> words);

}  // namespace migrate
