#include "migrate/cli/lazy_server.h"

#include <poll.h>

#include <algorithm>

#include "migrate/cli/page_link.h"

namespace migrate::cli {
namespace {

using std::chrono::seconds;

constexpr seconds kHandshake(10);  ///< and for a request that has begun
constexpr seconds kSilent(2);      ///< then another client may take over
constexpr seconds kTaking(30);     ///< to take at least a byte of an answer
constexpr size_t kMostStrangers = 32;

HostPort place(const CoreOptions& o) { return {o.address.empty() ? "0.0.0.0" : o.address, o.port}; }

}  // namespace

LazyServer::LazyServer(const CoreOptions& o, Logger& log)
    : log_(log), insecure_(o.insecure), tls_(page_tls(o)), listener_(place(o)) {
  refuse_plain_listener(listener_, tls_.has_value(), o.insecure);
}

CriuRequest LazyServer::next(const StopEvent* stop, std::optional<Deadline> deadline) {
  for (;;) {
    if (client_ && client_->buffered()) {
      if (const auto request = hear()) return *request;
      continue;
    }
    if (wait(stop, deadline)) {
      if (const auto request = hear()) return *request;
    }
    change_client();
  }
}

/// True: the client has said something.
bool LazyServer::wait(const StopEvent* stop, const std::optional<Deadline>& deadline) {
  std::vector<pollfd> polls;
  const auto add = [&](int fd, short events) { polls.push_back({fd, events, 0}); };
  add(stop != nullptr ? stop->fd() : -1, POLLIN);
  add(client_ ? client_->fd() : -1, POLLIN);
  const std::vector<int> listening = listener_.fds();
  for (const int fd : listening) add(fd, POLLIN);
  for (const Stranger& s : strangers_) add(s.handshake->fd(), s.want == Handshake::Want::read ? POLLIN : POLLOUT);
  int most = strangers_.empty() && !next_client_ ? -1 : 500;
  if (deadline) most = most < 0 ? deadline->poll_timeout() : std::min(most, deadline->poll_timeout());
  if (::poll(polls.data(), polls.size(), most) < 0 && errno != EINTR) throw Error("wait for", "clients", errno);
  if (stop != nullptr && stop->stopped()) throw Cancelled("cancelled", "the wait for a client");
  if (polls[1].revents != 0) return true;
  if (deadline && deadline->passed()) throw TimedOut("no client has asked for pages in time");
  size_t at = 2 + listening.size();
  std::erase_if(strangers_, [&](Stranger& s) { return polls[at++].revents != 0 ? !go_on(s) : s.deadline.passed(); });
  for (size_t i = 0; i < listening.size(); ++i)
    if (polls[2 + i].revents != 0) accept(listening[i]);
  return false;
}

std::optional<CriuRequest> LazyServer::hear() {
  try {
    const auto request = read_get(*client_, memories_, Deadline::in(kHandshake));
    if (!request) {
      cut("it hung up");
      return {};
    }
    heard_ = Clock::now();
    if (request->command == CriuRequest::Command::parent) {
      understands_ = understands_ || request->memory == kLazyDump;
      answer_parent(*client_, request->memory == kLazyDump || request->memory == lazy_dump(run_id_));
      return {};
    }
    if (request->command != CriuRequest::Command::get && !asked_ && !memories_.empty()) {
      cut("it ends before it has asked for a single page");
      return {};
    }
    asked_ = true;
    return request;
  } catch (const Error& e) {
    cut(e.what());
    return {};
  }
}

uint64_t LazyServer::answer(const CriuRequest& request) {
  if (!client_) return 0;
  try {
    uint64_t pages = 0;
    if (request.command == CriuRequest::Command::get) {
      pages = give(request);
    } else {
      answer_close(*client_);
    }
    heard_ = Clock::now();
    return pages;
  } catch (const Disconnected& e) {
    cut(e.what());
  } catch (const TimedOut& e) {
    cut(e.what());
  } catch (const Error&) {
    cut("its pages cannot be read any more");
    throw;
  }
  return 0;
}

uint64_t LazyServer::give(const CriuRequest& get) {
  if (answer_get(*client_, memories_, get)) return get.pages;
  if (gone_.insert(get.memory).second)
    log_.error("{} was killed here before all its pages were given: who touches the others where it runs gets SIGBUS",
               name_of(get.memory));
  if (!understands_) throw Error("pages of " + name_of(get.memory) + " are lost: it has ended here");
  answer_gone(*client_, get);
  return 0;
}

void LazyServer::cut(const std::string& why) {
  if (!client_) return;
  log_.warn("the connection with {} has ended: {}", client_->peer(), why);
  client_.reset();
}

void LazyServer::accept(int listening) {
  int error = 0;
  Fd socket = Listener::try_accept(listening, error);
  if (!socket) return;
  try {
    if (!tls_) return admit(accept_page_client(std::move(socket), nullptr, insecure_));
    if (strangers_.size() == kMostStrangers) strangers_.erase(strangers_.begin());
    Stranger s{tls_->start_accept(std::move(socket)), Handshake::Want::read, Deadline::in(kHandshake)};
    if (go_on(s)) strangers_.push_back(std::move(s));
  } catch (const Error& e) {
    log_.warn("{}", e.what());
  }
}

/// False: it is a stranger no more, or gone.
bool LazyServer::go_on(Stranger& s) {
  try {
    const auto want = s.handshake->advance();
    if (want) {
      s.want = *want;
      return true;
    }
    admit(s.handshake->take());
  } catch (const Error& e) {
    log_.warn("{}", e.what());
  }
  return false;
}

void LazyServer::admit(std::unique_ptr<Stream> stream) {
  stream->set_idle_timeout(kTaking);
  next_client_ = std::move(stream);
  change_client();
}

void LazyServer::change_client() {
  if (!next_client_ || (client_ && Clock::now() - heard_ < kSilent)) return;
  if (client_) cut("another client has come, and this one says nothing");
  client_ = std::move(next_client_);
  understands_ = false;
  heard_ = Clock::now();
  log_.info("{} may ask for pages, {}", client_->peer(), client_->description());
  connected_();
}

void LazyServer::forget_clients() {
  client_.reset();
  next_client_.reset();
  strangers_.clear();
}

}  // namespace migrate::cli
