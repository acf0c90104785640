// Frames between launcher, coordinator and shells: SEQPACKET messages of a type, a pid and a body, with descriptors.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/fd.h"
#include "core/base/log.h"

namespace migrate {

enum class Msg : uint32_t {
  hello = 1,
  go,
  forked,
  target,
  prepared,
  fill,
  finish,
  standing,
  detach,
  open,
  ok,
  log,
  error,
  refusal,
  corrupt,  // a failure and its kind; the body is the sentence
  lead_groups,
  join_groups,
  let_helpers_go,
  stage,
  tree,       // the tasks that must exist: to the coordinator (layout, or images with body "i"), to a shell its part
  areas,      // stage these, the source runs
  discard,    // give back these pages
  end_child,  // the task `pid`, a child of the receiver, is gone
  end_as_zombie,
  reserve,        // make these pages ready to be filled
  make_sockets,   // calls to be made by the task `pid` (packing.cpp), answered by the ends of pairs
  foreground,     // the terminal `pid` (the coordinator's descriptor) takes input for the group in the body
  open_terminal,  // open /dev/tty with the flags in the body; answered with it
  lazy,    // the task `pid` waits for pages: its userfaultfd, and what is registered (pack_areas); of shared memory
           // also the places; without a task the object in the body: its file and its place (LazyMemory)
  memory,  // how much do the shared memory objects have? Answered with the number of bytes
  init,    // to the launcher: the sender is the init of the tree's pid namespace
};

struct Message {
  Msg type{};
  pid_t pid = 0;     ///< the task it is about, in the tree's numbers
  pid_t sender = 0;  ///< as the receiver's pid namespace numbers it; only where SO_PASSCRED is set
  std::vector<std::byte> body;
  std::vector<Fd> fds;
  std::string_view text() const { return {reinterpret_cast<const char*>(body.data()), body.size()}; }
};

/// At most this much in one body.
inline constexpr size_t kMaxBody = 96 << 10;

struct SocketPair {
  Fd first, second;
  static SocketPair make();
};

void send_message(int socket, Msg type, pid_t pid, std::span<const std::byte> body = {}, std::span<const int> fds = {});
inline void send_text(int socket, Msg type, pid_t pid, std::string_view text) {
  send_message(socket, type, pid, as_bytes_of(text.substr(0, kMaxBody)));
}
/// The next message; nullopt when the peer hung up. Throws Error when the deadline passes.
std::optional<Message> receive_message(int socket, const Deadline& deadline);
/// As above without a time limit.
std::optional<Message> receive_message(int socket);

/// Sends the exception being handled as error, refusal or corrupt.
void send_current_exception(int socket, pid_t pid) noexcept;
/// Throws what the other side sent, if it is a failure.
void rethrow_failure(const Message& message);

/// The next message of a process that is there to answer: throws what it failed for, and Error that `who` died.
Message receive_answer(int socket, const Deadline& deadline, std::string_view who);
/// That in sentences.
inline constexpr std::string_view kTreesInit = "the tree's init";

/// A logger whose lines become log messages on `socket`, dropped where nobody reads.
LoggerPtr socket_logger(int socket);

}  // namespace migrate
