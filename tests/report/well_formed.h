// A small check of XML: elements nest, attributes are quoted, nothing is left unescaped.
#pragma once

#include <cctype>
#include <string>
#include <vector>

namespace migrate::testing_report {

/// Empty if `page` is well-formed, else what is wrong.
inline std::string why_malformed(const std::string& page) {
  std::vector<std::string> open;
  size_t at = 0;
  const auto near = [&](const char* what) { return what + (" near: " + page.substr(at, 60)); };
  while (at < page.size()) {
    if (page[at] == '&') {
      const size_t end = page.find(';', at);
      if (end == std::string::npos || end - at > 8) return near("a bare &");
      at = end + 1;
      continue;
    }
    if (page[at] != '<') {
      if (static_cast<unsigned char>(page[at]) < 0x20 && page[at] != '\n') return near("a control character");
      ++at;
      continue;
    }
    if (page.compare(at, 2, "<!") == 0) {
      at = page.find('>', at);
      if (at++ == std::string::npos) return "an open declaration";
      continue;
    }
    const bool closing = page.compare(at, 2, "</") == 0;
    size_t p = at + (closing ? 2 : 1);
    std::string name;
    while (p < page.size() && (std::isalnum(static_cast<unsigned char>(page[p])) != 0)) name += page[p++];
    if (name.empty()) return near("a bare <");
    bool empty = false;
    std::vector<std::string> attributes;
    while (p < page.size() && page[p] != '>') {
      if (page[p] == ' ' || page[p] == '\n') {
        ++p;
      } else if (page[p] == '/' && p + 1 < page.size() && page[p + 1] == '>') {
        empty = true;
        ++p;
      } else {
        const size_t equals = page.find('=', p);
        if (equals == std::string::npos || page.compare(equals, 2, "=\"") != 0)
          return near("an attribute without quotes");
        const std::string key = page.substr(p, equals - p);
        for (const std::string& other : attributes) {
          if (other == key) return near("an attribute twice");
        }
        attributes.push_back(key);
        const size_t end = page.find('"', equals + 2);
        if (end == std::string::npos || page.substr(equals + 2, end - equals - 2).find('<') != std::string::npos) {
          return near("a < in an attribute");
        }
        p = end + 1;
      }
    }
    if (p >= page.size()) return near("an open tag");
    if (closing) {
      if (open.empty() || open.back() != name) return near("the wrong end");
      open.pop_back();
    } else if (!empty) {
      open.push_back(name);
    }
    at = p + 1;
    if (open.empty() && name != "html") return near("a second root");
  }
  return open.empty() ? "" : "no end of " + open.back();
}

}  // namespace migrate::testing_report
