#include "migrate/session/wire/link_words.h"

#include <string_view>

#include "core/base/error.h"

namespace migrate {

std::vector<std::string> words_of(const LinkOptions& link) {
  std::vector<std::string> words;
  const auto say = [&](const char* name, const std::string& value) {
    if (!value.empty()) words.push_back(std::string(name) + "=" + value);
  };
  if (link.tls) {
    say("cacert", link.tls->cacert);
    say("cert", link.tls->cert);
    say("key", link.tls->key);
    say("crl", link.tls->crl.value_or(""));
  }
  say("tls-name", link.tls_name);
  if (link.insecure) say("insecure", link.insecure_forced ? "anywhere" : "loopback");
  return words;
}

LinkOptions link_from_words(std::span<char* const> words) {
  LinkOptions link;
  TlsConfig tls;
  for (const std::string_view word : words) {
    const size_t equals = word.find('=');
    const std::string_view name = word.substr(0, equals);
    const std::string value(equals == word.npos ? "" : word.substr(equals + 1));
    if (name == "cacert") {
      tls.cacert = value;
    } else if (name == "cert") {
      tls.cert = value;
    } else if (name == "key") {
      tls.key = value;
    } else if (name == "crl") {
      tls.crl = value;
    } else if (name == "tls-name") {
      link.tls_name = value;
    } else if (name == "insecure") {
      link.insecure = true;
      link.insecure_forced = value == "anywhere";
    } else {
      throw Refusal("\"" + std::string(word) + "\" says nothing about a connection", "only `migrate send` starts this");
    }
  }
  if (!link.insecure) link.tls = tls;
  return link;
}

}  // namespace migrate
