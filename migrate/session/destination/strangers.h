// Connections that have not shown yet who they are. Nobody waits for them: all are served side by side on the daemon's
// loop, bounded in number, by address and in time. Who makes room for others was silent for longest, of the address
// that has the most; whoever has just come is given a moment, and a flood waits in the listener's queue meanwhile.
#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <memory>
#include <string>

#include "core/base/fd.h"
#include "core/base/log.h"
#include "migrate/session/loop/event_loop.h"
#include "migrate/session/wire/connector.h"
#include "migrate/session/wire/stream_token.h"
#include "pageserver/handshake.h"

namespace migrate {

class Strangers {
 public:
  struct Limits {
    size_t in_all = 256;
    size_t of_an_address = 64;  ///< IPv6: of a /64 network
    std::chrono::milliseconds time{5000};
    std::chrono::milliseconds to_speak{200};    ///< before a silent one may have to make room
    std::chrono::milliseconds to_finish{1000};  ///< and one whose handshake has begun
  };
  struct Outcomes {
    Handshake::Admit admit;
    std::function<void(std::unique_ptr<Stream>)> authenticated;
    std::function<void(const StreamToken&, Fd)> page_stream;  ///< not authenticated; nothing behind the token was read
    std::function<void(const std::string& why)> refused;      ///< a sentence
  };

  /// Loop, connector and log outlive this.
  Strangers(EventLoop& loop, const Connector& connector, Limits limits, Outcomes outcomes, Logger& log);
  ~Strangers();
  /// Whether another one would have room; else try again some milliseconds later.
  bool room() const;
  void add(Fd socket);
  /// Makes room, when descriptors are scarce.
  void drop_oldest();

 private:
  struct Stranger;
  using Place = std::list<std::unique_ptr<Stranger>>::iterator;

  void make_room(const std::string& address);
  /// Who may be sent away, of that address ("": any); end() if nobody.
  Place dispensable(const std::string& address);
  void await(Place place, bool writable);
  void advance(Place place);
  /// It told by a token whose page stream it is.
  void pass_on(Place place);
  void refuse(Place place, const std::string& why);
  void drop(Place place);

  EventLoop& loop_;
  const Connector& connector_;
  const Limits limits_;
  const Outcomes outcomes_;
  Logger& log_;
  std::list<std::unique_ptr<Stranger>> all_;  ///< the oldest first
};

}  // namespace migrate
