// Between the receiver's daemon and the processes that serve a connection each: places, and the page streams that come
// to the daemon's one listener. Both ends are ours and trusted; either may die at any time.
//
// A page stream says whose it is before TLS begins, by a token of 16 random bytes that the source got over its
// authenticated control connection (Begun.stream_tokens): the daemon hands the untouched socket over, and the session's
// process shakes hands with it. A token is good once.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "migrate/session/wire/stream_token.h"

namespace migrate {

/// The serving process's end. One thread.
class DaemonLink {
 public:
  explicit DaemonLink(Fd socket) : socket_(std::move(socket)) {}
  /// Before a migration begins: "" if there is a place for it, else a sentence that says why not. Held until this
  /// process ends. Throws Error if the daemon is gone or does not answer.
  std::string take_place(const Deadline& deadline);
  /// From now on page streams with these tokens come here, each once.
  void expect_streams(std::span<const StreamToken> tokens);
  /// For poll(2): readable when next_stream() has something to say.
  int fd() const { return socket_.get(); }
  /// A page stream's socket; empty if none is here right now. Throws Error if the daemon is gone.
  Fd next_stream();

 private:
  Fd socket_;
};

/// What a serving process says.
struct ServingRequest {
  bool wants_place = false;
  std::vector<StreamToken> tokens;
};

/// The daemon's end, one a process. Non-blocking.
class ServingEnd {
 public:
  /// A connected pair, both close-on-exec.
  static std::pair<ServingEnd, Fd> pair();
  int fd() const { return socket_.get(); }
  /// nullopt: nothing is here. An empty request: the process is gone.
  std::optional<ServingRequest> receive();
  /// `refusal` empty: granted. A process that is gone does not mind.
  void answer_place(const std::string& refusal);
  /// False if it is not taken.
  bool pass_stream(const Fd& socket);

 private:
  explicit ServingEnd(Fd socket) : socket_(std::move(socket)) {}
  Fd socket_;
};

}  // namespace migrate
