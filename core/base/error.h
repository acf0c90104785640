// How failures are told. Three kinds, each with one sentence a person can act on:
//   Error    something failed: operation, subject (pid, fd, path, address) and errno
//   Refusal  what was asked cannot be done; found out before anything was touched; says what to do instead
//   Corrupt  input (an image, a peer) breaks its format
// Expected outcomes (a task that died, a peer that hung up) are values, not exceptions.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <string_view>

namespace migrate {

class Error : public std::runtime_error {
 public:
  /// `what` is "operation subject: strerror"; `err` 0 leaves the last part out.
  Error(std::string_view operation, std::string_view subject, int err = 0);
  /// A sentence of its own, without errno.
  explicit Error(const std::string& sentence) : std::runtime_error(sentence) {}
  int code() const { return err_; }

 private:
  int err_ = 0;
};

class Refusal : public Error {
 public:
  /// `object` names what is in the way ("task 42 has fd 7, a netlink socket"), `remedy` what to do.
  Refusal(std::string_view object, std::string_view remedy);
};

class Corrupt : public Error {
 public:
  Corrupt(std::string_view where, std::string_view why);
};

/// Throws Error(operation, subject, errno) if `result` is negative, else returns it.
template <class T>
T check(T result, std::string_view operation, std::string_view subject = {}) {
  if (result < 0) throw Error(operation, subject, errno);
  return result;
}

}  // namespace migrate
