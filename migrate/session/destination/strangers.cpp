#include "migrate/session/destination/strangers.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "core/base/error.h"
#include "pageserver/tcp.h"

namespace migrate {
namespace {

/// How long a refused peer may take to read why.
constexpr std::chrono::milliseconds kLastWords{1000};

/// Whose share of the places it is: the address, of IPv6 the network, which one host may have all of.
std::string address_key(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  const auto bytes = [](const void* from, size_t n) { return std::string(static_cast<const char*>(from), n); };
  if (address.ss_family == AF_INET) return bytes(&reinterpret_cast<const sockaddr_in*>(&address)->sin_addr, 4);
  if (address.ss_family == AF_INET6) return bytes(&reinterpret_cast<const sockaddr_in6*>(&address)->sin6_addr, 8);
  return "local";
}

void set_low_water(int socket, size_t bytes) {
  const int least = static_cast<int>(bytes);
  ::setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least);
}

enum class First { token, part_of_token, something_else };

/// Takes nothing. Of a part of a token the socket will not be readable again before more has come (SO_RCVLOWAT), so
/// that who speaks slowly costs nothing.
First look_at_first_bytes(int socket) {
  char bytes[kStreamTokenSize];
  const ssize_t n = ::recv(socket, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
  const size_t seen = n > 0 ? static_cast<size_t>(n) : 0;
  const size_t known = std::min(seen, sizeof kStreamTokenMagic);
  if (seen == 0 || std::memcmp(bytes, kStreamTokenMagic, known) != 0) {
    set_low_water(socket, 1);
    return First::something_else;
  }
  const bool whole = seen == sizeof bytes;
  set_low_water(socket, whole ? 1 : known < sizeof kStreamTokenMagic ? sizeof kStreamTokenMagic : sizeof bytes);
  return whole ? First::token : First::part_of_token;
}

}  // namespace

struct Strangers::Stranger {
  Fd socket;  ///< until the handshake has it
  std::string address;
  std::unique_ptr<Handshake> handshake;
  const std::chrono::steady_clock::time_point came = std::chrono::steady_clock::now();
  bool refused = false;
  EventLoop::Watch io, timer;

  /// Old enough to make room for others.
  bool dispensable(const Limits& limits) const;

  int fd() const { return handshake ? handshake->fd() : socket.get(); }
  ~Stranger() {
    // A watch goes before its descriptor.
    io = {};
    timer = {};
  }
};

Strangers::Strangers(EventLoop& loop, const Connector& connector, Limits limits, Outcomes outcomes, Logger& log)
    : loop_(loop), connector_(connector), limits_(limits), outcomes_(std::move(outcomes)), log_(log) {}

Strangers::~Strangers() = default;

void Strangers::drop(Place place) { all_.erase(place); }

void Strangers::drop_oldest() {
  if (!all_.empty()) all_.pop_front();
}

bool Strangers::Stranger::dispensable(const Limits& limits) const {
  return std::chrono::steady_clock::now() - came > (handshake ? limits.to_finish : limits.to_speak);
}

bool Strangers::room() const {
  return all_.size() < limits_.in_all ||
         std::ranges::any_of(all_, [this](const auto& one) { return one->dispensable(limits_); });
}

Strangers::Place Strangers::dispensable(const std::string& address) {
  const auto found = [&](bool silent) {
    return std::ranges::find_if(all_, [&](const auto& one) {
      return (address.empty() || one->address == address) && !one->handshake == silent && one->dispensable(limits_);
    });
  };
  const Place silent = found(true);
  return silent != all_.end() ? silent : found(false);
}

void Strangers::make_room(const std::string& address) {
  std::map<std::string, size_t> shares;
  for (const auto& one : all_) ++shares[one->address];
  if (shares[address] >= limits_.of_an_address) {
    if (const Place place = dispensable(address); place != all_.end()) return drop(place);
  }
  if (all_.size() < limits_.in_all) return;
  const auto most = std::ranges::max_element(shares, {}, [](const auto& share) { return share.second; });
  Place place = dispensable(most->first);
  if (place == all_.end()) place = dispensable("");
  if (place != all_.end()) drop(place);
}

void Strangers::add(Fd socket) {
  const std::string address = address_key(socket.get());
  make_room(address);
  const Place place = all_.insert(all_.end(), std::make_unique<Stranger>());
  Stranger& one = **place;
  one.socket = std::move(socket);
  one.address = address;
  try {
    one.timer = loop_.after(limits_.time, [this, place] {
      log_.debug("{} did not say in time who it is", peer_address((*place)->fd()));
      drop(place);
    });
    await(place, false);
  } catch (const Error& e) {  // no descriptors, no memory
    log_.debug("a connection: {}", e.what());
    drop(place);
  }
}

void Strangers::await(Place place, bool writable) {
  Stranger& one = **place;
  one.io = {};
  const auto next = [this, place] { advance(place); };
  one.io = writable ? loop_.when_writable(one.fd(), next) : loop_.when_readable(one.fd(), next);
}

void Strangers::advance(Place place) {
  Stranger& one = **place;
  if (one.refused) {  // reads our last words, and we what it still says
    char sink[4096];
    const ssize_t n = ::recv(one.fd(), sink, sizeof sink, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) drop(place);
    return;
  }
  try {
    if (!one.handshake) {
      const First first = look_at_first_bytes(one.socket.get());
      if (first == First::part_of_token) return;
      if (first == First::token) return pass_on(place);
      one.handshake = connector_.start_accept(std::move(one.socket), outcomes_.admit);
    }
    if (const auto want = one.handshake->advance()) return await(place, *want == Handshake::Want::write);
    one.io = {};
    std::unique_ptr<Stream> stream = one.handshake->take();
    drop(place);
    outcomes_.authenticated(std::move(stream));
  } catch (const Refusal& e) {
    refuse(place, e.what());
  } catch (const Error& e) {
    log_.debug("a connection: {}", e.what());
    drop(place);
  }
}

void Strangers::pass_on(Place place) {
  char bytes[kStreamTokenSize];
  const ssize_t taken = ::recv((*place)->socket.get(), bytes, sizeof bytes, MSG_DONTWAIT);
  const std::optional<StreamToken> token =
      taken == static_cast<ssize_t>(sizeof bytes) ? decode_stream_token(bytes) : std::nullopt;
  (*place)->io = {};
  Fd socket = std::move((*place)->socket);
  drop(place);
  if (token) outcomes_.page_stream(*token, std::move(socket));
}

void Strangers::refuse(Place place, const std::string& why) {
  outcomes_.refused(why);
  Stranger& one = **place;
  if (!one.handshake) return drop(place);
  one.refused = true;
  try {
    one.timer = loop_.after(kLastWords, [this, place] { drop(place); });
    await(place, false);
  } catch (const Error&) {
    drop(place);
  }
}

}  // namespace migrate
