#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "core/base/error.h"
#include "migrate/session/base/options.h"

namespace migrate {
namespace {

std::chrono::milliseconds* named(Timeouts& t, std::string_view name) {
  if (name == "connect") return &t.connect;
  if (name == "answer") return &t.answer;
  if (name == "freeze") return &t.freeze;
  if (name == "restore") return &t.restore;
  if (name == "silence") return &t.silence;
  if (name == "settle") return &t.settle;
  return nullptr;
}

}  // namespace

Timeouts with_test_timeouts(Timeouts timeouts) {
  const char* env = ::getenv("MIGRATE_TEST_TIMEOUTS");
  std::string_view rest = env != nullptr ? env : "";
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    const size_t equals = one.find('=');
    std::chrono::milliseconds* which = named(timeouts, one.substr(0, equals));
    const long ms = equals == one.npos ? 0 : std::atol(std::string(one.substr(equals + 1)).c_str());
    if (which == nullptr || ms <= 0) {
      throw Refusal("MIGRATE_TEST_TIMEOUTS holds \"" + std::string(one) + "\"", "write NAME=MILLISECONDS,...");
    }
    *which = std::chrono::milliseconds(ms);
  }
  return timeouts;
}

}  // namespace migrate
