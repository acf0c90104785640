// The control connection between two agents: wire::Message in frames, with the session's id and epoch on each.
// The peer is hostile: what it sends is bounded here and checked for form; meaning is checked by who asked.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/base/error.h"
#include "migrate/session/base/options.h"
#include "migration.pb.h"
#include "pageserver/frames.h"
#include "pageserver/page_stream.h"

namespace migrate {

/// An order of an epoch that somebody else has overtaken.
class StaleEpoch : public Error {
 public:
  using Error::Error;
};

class ControlChannel {
 public:
  static constexpr uint32_t kFrameLimit = 4 << 20;
  explicit ControlChannel(std::unique_ptr<Stream> stream);

  /// Exchanges prefaces. Corrupt or Refusal if the peer is something else.
  void open(const Deadline& deadline);
  /// From here on every message sent carries these, and every message received must carry the same session.
  void set_session(const SessionId& id, uint64_t epoch);

  void send(wire::Message message);
  /// The next message. A `refused` is thrown as Refusal (StaleEpoch if it says so); a peer that closed, as
  /// Disconnected.
  wire::Message receive(const Deadline& deadline);
  /// The same, but nothing if the peer says goodbye in place of a message.
  std::optional<wire::Message> receive_unless_over(const Deadline& deadline);
  /// As receive, but only a body of this kind is legal (Corrupt otherwise).
  wire::Message expect(wire::Message::BodyCase kind, const Deadline& deadline);
  /// Tells the peer why we end, without throwing.
  void refuse(const std::string& sentence, bool stale = false) noexcept;
  void finish() noexcept;

  /// The peer sent `refused`: it ended the session on its side, and holds nothing of it.
  bool peer_refused() const { return peer_refused_; }
  int fd() const { return frames_.stream().fd(); }
  bool buffered() const { return frames_.buffered(); }
  Stream& stream() { return frames_.stream(); }

 private:
  FrameChannel frames_;
  std::optional<SessionId> session_;
  uint64_t epoch_ = 0;
  bool peer_refused_ = false;
};

/// The session that a message names. Throws Corrupt if it names none.
SessionId session_of(const wire::Message& message);

/// Throws Corrupt if a count or length in a peer's message is impossible.
void check_bounds(const wire::Message& message);

}  // namespace migrate
