// The options of sockets that CRIU's entries have no fields for: one table, from which they are read, written and
// judged.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>

#include "core/files/file_credentials.h"
#include "core/image/image_set.h"
#include "ext/ext.pb.h"

namespace migrate {

inline constexpr char kSocketsImage[] = "migrate-sockets.img";
inline constexpr uint32_t kSocketsMagic = 0x4d49474b;

struct SocketOption {
  enum class Value {
    plain,             ///< as it is
    interface,         ///< the number of a network interface
    interface_in_net,  ///< the same in network byte order
    text,              ///< ends with its first NUL
  };
  /// What a task needs to set it (capabilities(7)).
  enum class Needs { nothing, net_admin, net_raw, either };
  /// Before it is bound, when it is bound, listening and connected, or when nobody's filter comes any more.
  enum class When { fresh, bound, sealed };
  int level, name;
  const char* text;
  Value value = Value::plain;
  Needs needs = Needs::nothing;
  When when = When::fresh;
  uint32_t size = 4;  ///< at most
};

/// Those that a socket of that kind can have, in the order in which they are set.
std::span<const SocketOption> socket_options();

/// Reads all that this kind of socket has. `connection`: of an end of a TCP connection that stays one.
void describe_options(int fd, const std::string& who, ext::SocketState& out, bool connection = false);

/// Names of the network interfaces that it is bound to or that options hold. Refusal for one that is there no more.
std::set<std::string> interfaces_in_options(int fd, const std::string& who);

/// migrate-sockets.img.
class SocketStates {
 public:
  /// Throws Corrupt for what no socket can have.
  explicit SocketStates(const ImageSet& images);
  /// nullptr for images that do not say.
  const ext::SocketState* find(uint32_t file_id) const;
  /// Sets what is not so already and can be set by now; when it is bound also all that was set before, since some
  /// change others.
  void apply(uint32_t file_id, int fd, SocketOption::When when, const std::string& who) const;
  /// Refusal for an option that none of the holders may set. `who` names the socket.
  void check_rights(uint32_t file_id, const Holders& holders, const std::string& who) const;

 private:
  std::map<uint32_t, ext::SocketState> states_;
};

}  // namespace migrate
