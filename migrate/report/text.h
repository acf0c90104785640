// Text of others (names of tasks and peers, sentences of a peer) made safe for a terminal and for a page.
#pragma once

#include <string>
#include <string_view>

namespace migrate {

/// `text` with control characters and what is not UTF-8 replaced by '?', line ends and tabs by blanks; at most `width`
/// characters.
std::string printable_text(std::string_view text, size_t width = std::string_view::npos);

/// For XML and HTML, inside elements and quoted attributes: printable, and & < > " ' as entities.
std::string escape_xml(std::string_view text);

}  // namespace migrate
