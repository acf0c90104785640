#include "migrate/session/wire/connector.h"

#include <sys/socket.h>
#include <unistd.h>

#include "core/base/error.h"
#include "pageserver/peer_user.h"

namespace migrate {

Connector::Connector(const LinkOptions& options) : options_(options) {
  if (options_.tls && !options_.insecure) {
    tls_.emplace(*options_.tls);
  } else if (!options_.insecure) {
    throw Refusal("no certificates were given", "name them (`migrate keys` makes some), or say --insecure on loopback");
  }
}

void Connector::check_same_user(int socket, const std::string& peer) const {
  if (options_.insecure_forced) return;
  const std::optional<uid_t> user = peer_user(socket);
  if (user == ::geteuid()) return;
  throw Refusal("--insecure goes between processes of one user on this machine, and " + peer + " is " +
                    (user ? "user " + std::to_string(*user) + "'s, not user " + std::to_string(::geteuid()) + "'s"
                          : "nobody's that can be told"),
                "use certificates");
}

std::unique_ptr<Stream> Connector::connect(const HostPort& to, const Deadline& deadline, const StopEvent* stop,
                                           std::string_view first_words) const {
  Fd socket = connect_tcp(to, deadline, stop);
  // A fresh connection has room for them.
  if (!first_words.empty() && ::send(socket.get(), first_words.data(), first_words.size(), MSG_NOSIGNAL) !=
                                  static_cast<ssize_t>(first_words.size()))
    throw Disconnected("send to", to.text(), errno);
  if (tls_)
    return tls_->connect(std::move(socket), options_.tls_name.empty() ? to.host : options_.tls_name, deadline, stop);
  if (!options_.insecure_forced && !is_loopback_connection(socket.get())) {
    throw Refusal("--insecure over " + to.text() + " would show all memory of the program to the network",
                  "use certificates");
  }
  std::unique_ptr<Stream> stream = connect_plain(std::move(socket), deadline, stop);
  // Only now: a connection that nobody has accepted yet is nobody's.
  check_same_user(stream->fd(), to.text());
  return stream;
}

std::unique_ptr<Stream> Connector::accept(Fd socket, const Deadline& deadline, const StopEvent* stop) const {
  if (tls_) return tls_->accept(std::move(socket), deadline, stop);
  check_same_user(socket.get(), peer_address(socket.get()));
  return accept_plain(std::move(socket), deadline, stop);
}

std::unique_ptr<Handshake> Connector::start_accept(Fd socket, Handshake::Admit admit) const {
  if (tls_) return tls_->start_accept(std::move(socket), std::move(admit));
  check_same_user(socket.get(), peer_address(socket.get()));
  return start_accept_plain(std::move(socket), std::move(admit));
}

std::string who_is_taken(const LinkOptions& options) {
  if (options.insecure && options.insecure_forced)
    return "--insecure-force: whoever reaches this port can make this host run anything, and reads along";
  if (options.insecure)
    return "--insecure: taken are connections of user " + std::to_string(::geteuid()) + " on this machine only";
  if (options.tls && options.tls->accepted_peers.empty())
    return "no --accept: every certificate of the CA " + options.tls->cacert +
           " is taken, and can make this host run anything";
  return {};
}

}  // namespace migrate
