#include "migrate/cli/page_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include "migrate/cli/key_files.h"
#include "pageserver/peer_user.h"

namespace migrate::cli {
namespace {

constexpr std::chrono::seconds kConnect(10), kHandshake(10);
// Between two requests a dump may be busy with the tree; hosts that are gone are noticed by keepalive.
constexpr std::chrono::minutes kIdle(10);

bool inside_this_machine(int fd) {
  int domain = 0;
  socklen_t size = sizeof domain;
  check(::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size), "look at", "the page server's socket");
  return domain == AF_UNIX || is_loopback_connection(fd);
}

/// Plain text inside this machine: not for every user's processes, since memory of the tree goes over it.
void check_user(int socket, bool insecure, const std::string& peer) {
  if (insecure || !inside_this_machine(socket)) return;
  const std::optional<uid_t> user = peer_user(socket);
  if (user && (*user == 0 || *user == ::geteuid())) return;
  throw Refusal(peer + " is " + (user ? "user " + std::to_string(*user) + "'s" : "nobody's that can be told") +
                    ", and neither root's nor ours",
                "give --tls on both sides, or --insecure");
}

std::unique_ptr<Stream> plain(Fd socket, bool insecure) {
  if (!insecure && !inside_this_machine(socket.get()))
    throw Refusal("pages would go over the network as plain text, " + peer_address(socket.get()),
                  "give --tls on both sides, or --insecure");
  return raw_stream(std::move(socket));
}

}  // namespace

std::optional<TlsContext> page_tls(const CoreOptions& o) {
  if (!o.tls) return std::nullopt;
  TlsConfig config;
  config.cacert = key_file(o.tls_cacert, kCaFile);
  config.cert = key_file(o.tls_cert, kHostCertificateFile);
  config.key = key_file(o.tls_key, kHostKeyFile);
  if (!o.tls_cacrl.empty()) config.crl = o.tls_cacrl;
  config.bare = true;
  config.any_server_name = o.tls_no_cn_verify;
  return TlsContext(config);
}

std::unique_ptr<Stream> connect_page_server(const CoreOptions& o) {
  const auto tls = page_tls(o);
  if (o.ps_socket < 0 && o.port == 0) throw Refusal("--page-server needs --port", "give the port it listens on");
  const HostPort to{o.address.empty() ? "127.0.0.1" : o.address, o.port};
  Fd socket = o.ps_socket >= 0 ? Fd(check(::fcntl(o.ps_socket, F_DUPFD_CLOEXEC, 0), "use", "--ps-socket"))
                               : connect_tcp(to, Deadline::in(kConnect));
  std::unique_ptr<Stream> stream =
      tls ? tls->connect(std::move(socket), to.host, Deadline::in(kHandshake)) : plain(std::move(socket), o.insecure);
  stream->set_idle_timeout(kIdle);
  return stream;
}

std::unique_ptr<Stream> accept_page_client(Fd socket, const TlsContext* tls, bool insecure) {
  if (tls == nullptr) check_user(socket.get(), insecure, peer_address(socket.get()));
  std::unique_ptr<Stream> stream =
      tls != nullptr ? tls->accept(std::move(socket), Deadline::in(kHandshake)) : plain(std::move(socket), insecure);
  stream->set_idle_timeout(kIdle);
  return stream;
}

void refuse_plain_listener(const Listener& listener, bool tls, bool insecure) {
  if (!tls && !insecure && !listener.loopback_only())
    throw Refusal("pages would go over the network as plain text", "give --tls, or --address 127.0.0.1, or --insecure");
}

void check_page_server(const Stream& stream, bool insecure) {
  if (stream.description() == "plain") check_user(stream.fd(), insecure, "page server " + stream.peer());
}

}  // namespace migrate::cli
