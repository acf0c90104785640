// Plain TCP behind the Stream interface (--insecure).
#include <sys/socket.h>

#include "pageserver/handshake.h"
#include "pageserver/stream.h"
#include "pageserver/tcp.h"
#include "pageserver/verdict.h"

namespace migrate {
namespace {

class PlainStream final : public Stream {
 public:
  explicit PlainStream(Fd socket) : Stream(std::move(socket), "", "") {
    set_peer(peer_address(fd()), "");
    const int flags = check(::fcntl(fd(), F_GETFL), "get flags of", "socket");
    check(::fcntl(fd(), F_SETFL, flags | O_NONBLOCK), "set flags of", "socket");
  }
  void finish() override { ::shutdown(fd(), SHUT_WR); }
  std::string description() const override { return "plain"; }

 protected:
  Step try_read(std::span<std::byte> out) override {
    while (true) {
      const ssize_t n = ::recv(fd(), out.data(), out.size(), 0);
      if (n > 0) return {static_cast<size_t>(n), Want::nothing};
      if (n == 0) return {0, Want::closed};
      if (errno == EAGAIN) return {0, Want::read};
      if (errno != EINTR) throw Disconnected("read from", peer(), errno);
    }
  }
  Step try_write(std::span<const std::byte> data) override {
    while (true) {
      const ssize_t n = ::send(fd(), data.data(), data.size(), MSG_NOSIGNAL);
      if (n >= 0) return {static_cast<size_t>(n), Want::nothing};
      if (errno == EAGAIN) return {0, Want::write};
      if (errno != EINTR) throw Disconnected("send to", peer(), errno);
    }
  }
};

std::unique_ptr<Stream> greet(Fd socket, Deadline deadline, const StopEvent* stop) {
  auto stream = std::make_unique<PlainStream>(std::move(socket));
  stream->set_stop(stop);
  try {
    exchange_verdicts(*stream, {}, deadline);
  } catch (const Refusal&) {
    // A TLS client gets our plain greeting, which it tells from TLS.
    linger_close(stream->fd(), Deadline::in(std::chrono::seconds(1)));
    throw;
  }
  stream->set_stop(nullptr);
  return stream;
}

class PlainHandshake final : public Handshake {
 public:
  PlainHandshake(Fd socket, Admit admit) : stream_(std::make_unique<PlainStream>(std::move(socket))) {
    if (admit) refusal_ = admit("");
    verdicts_.emplace(refusal_);
  }
  std::optional<Want> advance() override {
    try {
      if (const auto want = verdicts_->advance(*stream_))
        return *want == Stream::Want::write ? Want::write : Want::read;
      if (!refusal_.empty()) throw Refusal(stream_->peer() + " is refused", refusal_);
      return {};
    } catch (const Refusal&) {
      ::shutdown(stream_->fd(), SHUT_WR);
      throw;
    }
  }
  std::unique_ptr<Stream> take() override { return std::move(stream_); }
  int fd() const override { return stream_->fd(); }

 private:
  std::unique_ptr<PlainStream> stream_;
  std::string refusal_;
  std::optional<VerdictExchange> verdicts_;
};

}  // namespace

std::unique_ptr<Handshake> start_accept_plain(Fd socket, Handshake::Admit admit) {
  return std::make_unique<PlainHandshake>(std::move(socket), std::move(admit));
}

std::unique_ptr<Stream> connect_plain(Fd socket, Deadline deadline, const StopEvent* stop) {
  return greet(std::move(socket), deadline, stop);
}

std::unique_ptr<Stream> accept_plain(Fd socket, Deadline deadline, const StopEvent* stop) {
  return greet(std::move(socket), deadline, stop);
}

std::unique_ptr<Stream> raw_stream(Fd socket) { return std::make_unique<PlainStream>(std::move(socket)); }

}  // namespace migrate
