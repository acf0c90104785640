// migrate page-server -D DIR --port N
#include <sys/wait.h>

#include <filesystem>
#include <iostream>

#include "migrate/cli/commands.h"
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

void write_pidfile(const CoreOptions& o, pid_t pid) {
  if (o.pidfile.empty()) return;
  std::filesystem::path path(o.pidfile);
  if (path.is_relative()) path = std::filesystem::path(o.effective_work_dir()) / path;
  const Fd fd = open_path(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  write_full(fd.get(), as_bytes_of(std::to_string(pid)), o.pidfile);
}

/// In the parent its exit code.
std::optional<int> become_daemon(const CoreOptions& o, Logger& log) {
  log.flush();  // or what is buffered would be written twice
  const pid_t pid = check(::fork(), "start", "the page server");
  if (pid != 0) {
    write_pidfile(o, pid);
    return 0;
  }
  ::setsid();
  const Fd null = open_path("/dev/null", O_RDWR);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null.get(), fd);
  return std::nullopt;
}

}  // namespace

int run_page_server(const CoreOptions& o) {
  if (o.auto_dedup) throw Refusal("--auto-dedup is not supported", "leave it out; parents keep their pages");
  const auto logger = make_logger(o);
  const Fd dir = open_path(o.images_dir, O_RDONLY | O_DIRECTORY);
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
    if (!tls && !o.insecure && !listener->loopback_only())
      throw Refusal("pages would come over the network as plain text",
                    "give --tls, or --address 127.0.0.1, or --insecure");
    std::cerr << "page-server: listening on " + listener->addresses() + "\n";
  }
  if (o.daemon) {
    if (const auto code = become_daemon(o, *logger)) {
      if (o.status_fd >= 0) write_full(o.status_fd, std::as_bytes(std::span("\0", 1)), "the status descriptor");
      return *code;
    }
  } else {
    write_pidfile(o, ::getpid());
    if (o.status_fd >= 0) write_full(o.status_fd, std::as_bytes(std::span("\0", 1)), "the status descriptor");
  }
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
