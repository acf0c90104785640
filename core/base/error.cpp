#include "core/base/error.h"

#include <cstring>

namespace migrate {
namespace {

std::string sentence(std::string_view operation, std::string_view subject, int err) {
  std::string s(operation);
  if (!subject.empty()) {
    s += ' ';
    s += subject;
  }
  if (err != 0) {
    s += ": ";
    s += std::strerror(err);
  }
  return s;
}

}  // namespace

Error::Error(std::string_view operation, std::string_view subject, int err)
    : std::runtime_error(sentence(operation, subject, err)), err_(err) {}

Refusal::Refusal(std::string_view object, std::string_view remedy)
    : Error(std::string(object) + "; " + std::string(remedy)) {}

Corrupt::Corrupt(std::string_view where, std::string_view why)
    : Error(std::string(where) + " is damaged: " + std::string(why)) {}

}  // namespace migrate
