// A connected byte stream to the peer, with bounded waits: TLS (tls.h) or, for --insecure, plain TCP.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/base/fd.h"
#include "pageserver/stop_event.h"

namespace migrate {

/// The peer went away without saying goodbye (reset, cut, end of file in the middle).
class Disconnected : public Error {
 public:
  using Error::Error;
};

/// A deadline passed, or no byte moved for the idle time-out.
class TimedOut : public Error {
 public:
  using Error::Error;
};

/// A StopEvent ended the wait.
class Cancelled : public Error {
 public:
  using Error::Error;
};

/// Thread contract: at most one thread in read_*() and one in write()/finish() at the same time. A write that ended
/// with an exception leaves the stream unusable for writing; a read that timed out may be repeated.
class Stream {
 public:
  virtual ~Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  /// Waits for at least one byte and returns how many came; 0 when the peer finished in an orderly way.
  /// Without a deadline the idle time-out counts. Throws Disconnected, TimedOut, Cancelled.
  size_t read_some(std::span<std::byte> out, std::optional<Deadline> deadline = {});
  /// Fills `out`; false if the peer finished before the first byte; Disconnected if it finished in the middle.
  bool read_exact(std::span<std::byte> out, std::optional<Deadline> deadline = {});
  /// Writes all of it, blocking as long as the peer takes bytes (at least one per idle time-out, or until `deadline`).
  void write(std::span<const std::byte> data, std::optional<Deadline> deadline = {});
  /// Says goodbye: the peer's reads return 0 from here on. Destroying a stream without it is a cut for the peer.
  virtual void finish() = 0;

  /// Cuts the connection at once, in both directions; any thread. The peer sees a cut.
  void abort() noexcept;

  /// Who is at the other end, for messages: "192.0.2.7:7400 (host-b)".
  const std::string& peer() const { return peer_; }
  /// The peer's certificate name (first DNS or IP subjectAltName); empty on plain streams.
  const std::string& peer_name() const { return peer_name_; }
  /// The socket, for poll(2) only. With buffered() true, do not poll: read.
  int fd() const { return fd_.get(); }
  /// Bytes were already taken from the socket and wait in this stream.
  virtual bool buffered() const { return false; }
  /// "TLSv1.3 TLS_AES_128_GCM_SHA256", or "plain".
  virtual std::string description() const = 0;

  /// Longest time without any progress in a call without a deadline. Default 30 s. Set while no call runs.
  void set_idle_timeout(std::chrono::milliseconds timeout) { idle_ = timeout; }
  /// Watches `stop` in all waits (nullptr: none). Two slots: the owner's, and that of a group of streams
  /// (PageSender and PageReceiver use the second). Set while no call runs.
  void set_stop(const StopEvent* stop) { stops_[0] = stop; }
  void set_group_stop(const StopEvent* stop) { stops_[1] = stop; }
  /// How long write() has waited for the peer to take bytes, in all. For the writing thread.
  std::chrono::nanoseconds waited_to_write() const { return waited_to_write_; }

  enum class Want { nothing, read, write, closed };

 protected:
  Stream(Fd fd, std::string peer, std::string peer_name);
  struct Step {
    size_t bytes;
    Want want;  ///< nothing: `bytes` moved; read/write: wait for the socket first; closed: orderly end
  };
  /// Never block. Throw Disconnected or Error.
  virtual Step try_read(std::span<std::byte> out) = 0;
  virtual Step try_write(std::span<const std::byte> data) = 0;
  /// Sends what try_write kept back; false: the socket is full.
  virtual bool try_flush() { return true; }
  void wait(Want want, const std::optional<Deadline>& deadline, const char* doing) const;
  void set_peer(std::string peer, std::string name);

 private:
  friend class VerdictExchange;
  friend void exchange_verdicts(Stream& stream, std::string_view our_refusal, Deadline deadline);
  void throw_if_stopped() const;
  void wait_to_write(Want want, const std::optional<Deadline>& deadline);
  Fd fd_;
  std::string peer_, peer_name_;
  std::chrono::milliseconds idle_{30000};
  std::chrono::nanoseconds waited_to_write_{0};
  const StopEvent* stops_[2] = {nullptr, nullptr};
};

/// Plain TCP behind the same interface, for --insecure. Both sides say hello, so that a TLS peer is told apart.
/// Takes a connected TCP (or Unix stream) socket. Throw Refusal with one sentence if the peer speaks something else.
std::unique_ptr<Stream> connect_plain(Fd socket, Deadline deadline, const StopEvent* stop = nullptr);
std::unique_ptr<Stream> accept_plain(Fd socket, Deadline deadline, const StopEvent* stop = nullptr);
/// A plain stream without hello, over any connected stream socket (tests, local helpers).
std::unique_ptr<Stream> raw_stream(Fd socket);

}  // namespace migrate
