#include "pageserver/stream.h"

#include <poll.h>
#include <sys/socket.h>

#include "pageserver/tcp.h"

namespace migrate {

Stream::Stream(Fd fd, std::string peer, std::string peer_name)
    : fd_(std::move(fd)), peer_(std::move(peer)), peer_name_(std::move(peer_name)) {}

void Stream::set_peer(std::string peer, std::string name) {
  peer_ = std::move(peer);
  peer_name_ = std::move(name);
}

void Stream::abort() noexcept { ::shutdown(fd_.get(), SHUT_RDWR); }

void Stream::throw_if_stopped() const {
  for (const StopEvent* stop : stops_)
    if (stop != nullptr && stop->stopped()) throw Cancelled("cancelled", "the connection with " + peer_);
}

void Stream::wait(Want want, const std::optional<Deadline>& deadline, const char* doing) const {
  const Deadline until = deadline ? *deadline : Deadline::in(idle_);
  pollfd polls[3];
  nfds_t count = 0;
  polls[count++] = {fd_.get(), static_cast<short>(want == Want::write ? POLLOUT : POLLIN), 0};
  for (const StopEvent* stop : stops_)
    if (stop != nullptr) polls[count++] = {stop->fd(), POLLIN, 0};
  while (true) {
    throw_if_stopped();
    const int n = ::poll(polls, count, until.poll_timeout());
    if (n < 0 && errno != EINTR) throw Error("wait for", peer_, errno);
    if (n > 0 && polls[0].revents != 0) return;
    if (n == 0 && until.passed())
      throw TimedOut(deadline ? "time is up while " + std::string(doing) + " " + peer_
                              : peer_ + " has been silent for " + std::to_string(idle_.count() / 1000) +
                                    " s; it hangs or the network is gone");
  }
}

size_t Stream::read_some(std::span<std::byte> out, std::optional<Deadline> deadline) {
  if (out.empty()) return 0;
  while (true) {
    throw_if_stopped();
    const Step step = try_read(out);
    if (step.bytes > 0) return step.bytes;
    if (step.want == Want::closed) return 0;
    wait(step.want, deadline, "waiting for");
  }
}

bool Stream::read_exact(std::span<std::byte> out, std::optional<Deadline> deadline) {
  size_t got = 0;
  while (got < out.size()) {
    const size_t n = read_some(out.subspan(got), deadline);
    if (n == 0 && got == 0) return false;
    if (n == 0) throw Disconnected(peer_ + " ended the connection in the middle of a message");
    got += n;
  }
  return true;
}

void Stream::write(std::span<const std::byte> data, std::optional<Deadline> deadline) {
  while (!data.empty()) {
    throw_if_stopped();
    const Step step = try_write(data);
    data = data.subspan(step.bytes);
    if (step.bytes == 0) wait_to_write(step.want, deadline);
  }
  while (!try_flush()) wait_to_write(Want::write, deadline);
}

void Stream::wait_to_write(Want want, const std::optional<Deadline>& deadline) {
  const auto began = std::chrono::steady_clock::now();
  wait(want, deadline, "sending to");
  waited_to_write_ += std::chrono::steady_clock::now() - began;
}

}  // namespace migrate
