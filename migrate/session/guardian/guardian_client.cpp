#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "core/base/procfs.h"
#include "migrate/session/guardian/background.h"
#include "migrate/session/guardian/guardian.h"

namespace migrate {

Guardian::Guardian(const Spawn& spawn) : socket_(Fd()) {
  auto [ours, theirs] = PacketSocket::pair();
  pid_ = spawn(Fd(::fcntl(theirs.fd(), F_DUPFD_CLOEXEC, 3)));
  std::optional<Fd> pidfd = open_pidfd(pid_);  // our child: its pid cannot be reused before we reap it
  if (!pidfd) throw Error("start", "the guardian", ESRCH);
  pidfd_ = std::move(*pidfd);
  socket_ = std::move(ours);
}

Guardian::~Guardian() { let_go(); }

bool Guardian::dead() const {
  pollfd p{pidfd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

wire::GuardianReply Guardian::checked(wire::GuardianReply reply) const {
  if (reply.body_case() != wire::GuardianReply::kFailed) return reply;
  const std::string sentence = reply.failed().sentence();
  if (reply.failed().refusal()) {
    const size_t cut = sentence.find("; ");
    if (cut != std::string::npos) throw Refusal(sentence.substr(0, cut), sentence.substr(cut + 2));
  }
  throw Error(sentence);
}

wire::GuardianReply Guardian::ask(const wire::GuardianRequest& request, const Deadline& deadline,
                                  const StopEvent* stop) {
  socket_.send(request);
  return await(deadline, stop);
}

wire::GuardianReply Guardian::await(const Deadline& deadline, const StopEvent* stop) {
  for (;;) {
    std::array<pollfd, 3> p{pollfd{socket_.fd(), POLLIN, 0}, pollfd{pidfd_.get(), POLLIN, 0},
                            pollfd{stop != nullptr ? stop->fd() : -1, POLLIN, 0}};
    const int n = ::poll(p.data(), p.size(), deadline.poll_timeout());
    if (n < 0 && errno != EINTR) throw Error("wait for", "the guardian", errno);
    if (n == 0 && deadline.passed()) throw Error("wait for", "the guardian's answer", ETIMEDOUT);
    if (n <= 0) continue;
    // Its last words count, also when it died after them.
    if ((p[0].revents & POLLIN) != 0) {
      wire::GuardianReply reply;
      switch (socket_.receive(reply, deadline)) {
        case PacketSocket::Outcome::message:
          return checked(std::move(reply));
        case PacketSocket::Outcome::closed:
          throw GuardianGone(std::string("the guardian died"));
        case PacketSocket::Outcome::timeout:
          continue;
      }
    }
    if (p[1].revents != 0 || (p[0].revents & (POLLHUP | POLLERR)) != 0) {
      throw GuardianGone(std::string("the guardian died"));
    }
    if (p[2].revents != 0) throw Cancelled(std::string("interrupted"));
  }
}

void Guardian::check_alive() {
  pollfd p{socket_.fd(), POLLIN, 0};
  if (::poll(&p, 1, 0) > 0 && (p.revents & POLLIN) != 0) {
    wire::GuardianReply reply;
    if (socket_.receive(reply, Deadline::in(std::chrono::milliseconds(0))) == PacketSocket::Outcome::message) {
      checked(std::move(reply));
      return;
    }
  }
  if (dead()) throw GuardianGone(std::string("the guardian died"));
}

void Guardian::kill() {
  if (!pidfd_) return;
  ::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pidfd_.reset();
}

void Guardian::leave(const Deadline& deadline) {
  socket_ = PacketSocket(Fd());
  if (!pidfd_) return;
  pollfd p{pidfd_.get(), POLLIN, 0};
  while (::poll(&p, 1, deadline.poll_timeout()) <= 0) {
    if (!deadline.passed()) continue;
    kill();
    return;
  }
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pidfd_.reset();
}

void Guardian::let_go() {
  socket_ = PacketSocket(Fd());
  if (pidfd_) ::waitpid(pid_, nullptr, WNOHANG);
  pidfd_.reset();
}

Guardian::Spawn exec_guardian(const char* verb) {
  return [verb](Fd end) {
    const pid_t pid = check(::fork(), "start", "the guardian");
    if (pid != 0) return pid;
    char name[] = "migrate", number[] = "3";
    std::array<char*, 4> argv{name, const_cast<char*>(verb), number, nullptr};
    execute_in_background({end.get()}, argv.data());
  };
}

}  // namespace migrate
