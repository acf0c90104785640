// migrate page-server -D DIR --port N
#include <iostream>

#include "migrate/cli/commands.h"
#include "migrate/cli/daemon.h"
#include "migrate/cli/page_link.h"
#include "pageserver/criu_page_server.h"

namespace migrate::cli {
namespace {

/// The first connection that is one: who fails its handshake, or may not connect, is told off and forgotten.
std::unique_ptr<Stream> await_client(const CoreOptions& o, Listener* listener, const TlsContext* tls, Logger& log) {
  if (listener == nullptr)
    return accept_page_client(Fd(check(::fcntl(o.ps_socket, F_DUPFD_CLOEXEC, 0), "use", "--ps-socket")), tls,
                              o.insecure);
  for (;;) {
    auto socket = listener->accept(nullptr);
    if (!socket) continue;
    try {
      return accept_page_client(std::move(*socket), tls, o.insecure);
    } catch (const Error& e) {
      log.warn("{}", e.what());
    }
  }
}

}  // namespace

int run_page_server(const CoreOptions& o) {
  if (o.auto_dedup) throw Refusal("--auto-dedup is not supported", "leave it out; parents keep their pages");
  const auto logger = make_logger(o);
  const Fd dir = open_images_folder(o);
  if (o.prev_images_dir.empty()) {
    unlink_parent(dir.get());
  } else {
    link_parent(dir.get(), o.prev_images_dir);
  }
  ImageSet images;
  PageFolder folder(dir.get(), images, true);
  const auto tls = page_tls(o);
  std::optional<Listener> listener;
  if (o.ps_socket < 0) {
    listener.emplace(HostPort{o.address.empty() ? "0.0.0.0" : o.address, o.port});
    refuse_plain_listener(*listener, tls.has_value(), o.insecure);
    std::cerr << "page-server: listening on " + listener->addresses() + "\n";
  }
  if (begin_serving(o, *logger)) return 0;
  const auto stream = await_client(o, listener ? &*listener : nullptr, tls ? &*tls : nullptr, *logger);
  listener.reset();
  logger->info("{} sends pages, {}", stream->peer(), stream->description());
  try {
    serve_criu_pages(*stream, folder);
  } catch (const Error& e) {
    logger->error("{}", e.what());
    throw;
  }
  logger->info("stored {} pages", folder.pages_written());
  return 0;
}

}  // namespace migrate::cli
