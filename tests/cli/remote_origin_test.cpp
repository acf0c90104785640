// Pages that come from a page server: in what order they are asked for, and what a server that lies, fails or is silent
// does.
#include "migrate/cli/remote_origin.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstring>
#include <map>

#include "pageserver/criu_protocol.h"

namespace migrate::cli {
namespace {

using namespace std::chrono_literals;
using Command = CriuRequest::Command;

constexpr MemoryId kTask{MemoryId::Kind::task, 42};
constexpr uint64_t kBase = 0x100000;

/// What a page must hold: its own address, everywhere.
std::vector<std::byte> contents(uint64_t address, uint64_t pages) {
  std::vector<std::byte> data(pages * kPageSize);
  for (size_t at = 0; at < data.size(); at += sizeof address) {
    const uint64_t word = address + at / kPageSize * kPageSize;
    std::memcpy(data.data() + at, &word, sizeof word);
  }
  return data;
}

class Sink final : public PageSink {
 public:
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    const std::lock_guard lock(mutex_);
    if (fails) throw Error("no page can be put in");
    EXPECT_EQ(memory, kTask);
    const auto right = contents(address, data.size() / kPageSize);
    EXPECT_TRUE(std::equal(data.begin(), data.end(), right.begin())) << std::hex << address;
    for (size_t at = 0; at < data.size(); at += kPageSize) ++pages_[address + at];
  }
  size_t pages() const {
    const std::lock_guard lock(mutex_);
    return pages_.size();
  }
  bool has(uint64_t page) const {
    const std::lock_guard lock(mutex_);
    return pages_.contains(kBase + page * kPageSize);
  }
  std::atomic<bool> fails = false;

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, int> pages_;
};

bool until(const std::function<bool()>& good) {
  const Deadline deadline = Deadline::in(20s);
  while (!good() && !deadline.passed()) std::this_thread::sleep_for(1ms);
  return good();
}

/// A page server, a thread for each connection.
class Server {
 public:
  /// What it does to the answer to its request number `n` (from 0, over all connections): an answer that is right, or
  /// not. Empty bytes: it hangs up.
  using Answer = std::function<std::vector<std::byte>(const CriuRequest& get, int n)>;

  explicit Server(Answer answer = right) : answer_(std::move(answer)) {}
  ~Server() {
    open = true;
    for (const auto& stream : streams_) stream->abort();
    for (std::thread& thread : threads_) thread.join();
  }

  static std::vector<std::byte> right(const CriuRequest& get, int) { return part(get, get.pages); }
  static std::vector<std::byte> part(const CriuRequest& get, uint64_t pages) {
    CriuRequest header = get;
    header.command = Command::add_f;
    header.flags = CriuRequest::kPresent;
    header.pages = pages;
    return with(header, contents(get.address, pages));
  }
  static std::vector<std::byte> with(const CriuRequest& header, const std::vector<std::byte>& data) {
    const auto bytes = encode_criu_answer(header);
    std::vector<std::byte> all(bytes.begin(), bytes.end());
    all.insert(all.end(), data.begin(), data.end());
    return all;
  }

  std::unique_ptr<Stream> connect() {
    if (Server* other = instead) return other->connect();
    ++connections;
    if (down) throw Error("connect to", "the server", ECONNREFUSED);
    int fds[2];
    check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), "make", "socket pair");
    streams_.push_back(raw_stream(Fd(fds[1])));
    threads_.emplace_back([this, stream = streams_.back().get()] { serve(*stream); });
    return raw_stream(Fd(fds[0]));
  }
  void cut() {
    for (const auto& stream : streams_) stream->abort();
  }
  std::vector<CriuRequest> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

  std::atomic<bool> down = false, closed = false, open = true;  ///< open: answers go out
  std::atomic<int> connections = 0;
  std::atomic<Server*> instead = nullptr;  ///< who answers in its place
  std::string dump;                        ///< run id, of ours; empty: it is CRIU's

 private:
  void serve(Stream& stream) {
    try {
      std::array<std::byte, kCriuRequestSize> bytes{};
      while (stream.read_exact(bytes)) {
        const CriuRequest request = decode_criu_request(bytes);
        if (request.command == Command::parent) {
          std::array<std::byte, 4> has{};
          if (!dump.empty() && (request.memory == kLazyDump || request.memory == lazy_dump(dump)))
            has[0] = std::byte{1};
          stream.write(has);
          continue;
        }
        if (request.command == Command::close) {
          closed = true;
          stream.write(std::array<std::byte, 4>{});
          continue;
        }
        int n = 0;
        {
          const std::lock_guard lock(mutex_);
          n = static_cast<int>(requests_.size());
          requests_.push_back(request);
        }
        until([&] { return open.load(); });
        const auto answer = answer_(request, n);
        if (answer.empty()) return stream.abort();
        stream.write(answer);
        if (answer.size() % kPageSize == kPageSize / 2 + kCriuRequestSize) return stream.abort();  // in the middle
      }
    } catch (const Error&) {  // cut
    }
  }

  const Answer answer_;
  mutable std::mutex mutex_;
  std::vector<CriuRequest> requests_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<std::thread> threads_;
};

RemoteOrigin::Options options_for(Server& server) {
  return {.connect = [&server] { return server.connect(); }, .patience = 20s, .first_delay = 1ms, .longest_delay = 5ms};
}

FillOrder pages(uint64_t count) { return FillOrder({{kTask, {.address = kBase, .pages = count}}}); }

TEST(RemoteOrigin, BringsAllAndSaysSo) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  origin.claim(sink, pages(2000));
  EXPECT_EQ(sink.pages(), 1u);
  origin.start(sink);
  EXPECT_TRUE(until([&] { return sink.pages() == 2000; }));
  EXPECT_NO_THROW(origin.check());
  EXPECT_FALSE(server.closed);
  origin.finish();
  origin.close();
  EXPECT_TRUE(server.closed);
  EXPECT_EQ(server.connections, 1);
}

TEST(RemoteOrigin, NothingToBringIsClosedAtOnce) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  origin.claim(sink, FillOrder());
  EXPECT_TRUE(server.closed);
  origin.start(sink);
  origin.finish();
  origin.close();
  EXPECT_EQ(server.connections, 1);
}

TEST(RemoteOrigin, WhatNobodyHasClaimedIsNotTriedForEver) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin::Options options = options_for(server);
  options.unclaimed = 30ms;
  RemoteOrigin origin(std::move(options), *log);
  EXPECT_GE(origin.fd(), 0);
  const auto reach = [&] {
    EXPECT_TRUE(origin.reconnect_unclaimed().has_value()) << "it is cut, and was not told to wait";
    EXPECT_EQ(origin.fd(), -1);
    while (const auto pause = origin.reconnect_unclaimed()) std::this_thread::sleep_for(*pause);
  };
  EXPECT_NO_THROW(reach());
  EXPECT_EQ(server.connections, 2);
  EXPECT_GE(origin.fd(), 0);
  server.down = true;
  EXPECT_THROW(reach(), Error);
  // Who claims may be luckier.
  server.down = false;
  origin.claim(sink, pages(1));
  EXPECT_EQ(sink.pages(), 1u);
}

TEST(RemoteOrigin, AsksAheadWithinBoundsAndForFaultsFirst) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  origin.claim(sink, pages(20'000));
  server.open = false;
  origin.start(sink);
  // Several requests are on their way while none is answered; not all of them, though.
  EXPECT_TRUE(until([&] { return server.requests().size() > 1; }));
  origin.want(kTask, kBase + 15'000 * kPageSize);
  const auto asked_for = [&](uint64_t page) {
    uint64_t before = 0;
    for (const CriuRequest& r : server.requests()) {
      if (r.pages == 1 && r.address == kBase + page * kPageSize) return before;
      before += r.pages;
    }
    return ~uint64_t{0};
  };
  server.open = true;
  EXPECT_TRUE(until([&] { return sink.has(15'000); }));
  EXPECT_LT(asked_for(15'000), (512u << 10) / kPageSize);
  EXPECT_TRUE(until([&] { return sink.pages() == 20'000; }));
  origin.finish();
}

TEST(RemoteOrigin, ShortAnswersAreContinued) {
  // CRIU's server stops where one of its buffers ends.
  Server server([](const CriuRequest& get, int) { return Server::part(get, std::min<uint64_t>(get.pages, 3)); });
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  origin.claim(sink, pages(100));
  origin.start(sink);
  for (const uint64_t page : {90u, 50u, 51u}) origin.want(kTask, kBase + page * kPageSize);
  EXPECT_TRUE(until([&] { return sink.pages() == 100; }));
  EXPECT_NO_THROW(origin.check());
  origin.finish();
}

/// What a server may do wrong; each is noticed, no wrong page is taken, and all come over another connection.
TEST(RemoteOrigin, ALyingServerIsAskedAgain) {
  const auto changed = [](const CriuRequest& get, auto&& change) {
    CriuRequest header = get;
    header.command = Command::add_f;
    header.flags = CriuRequest::kPresent;
    change(header);
    return Server::with(header, contents(get.address, get.pages));
  };
  const std::vector<std::pair<const char*, Server::Answer>> wrongs = {
      {"another page",
       [&](const CriuRequest& g, int) { return changed(g, [](CriuRequest& h) { h.address += kPageSize; }); }},
      {"another task", [&](const CriuRequest& g, int) { return changed(g, [](CriuRequest& h) { h.memory.id = 43; }); }},
      {"more pages", [&](const CriuRequest& g, int) { return changed(g, [](CriuRequest& h) { ++h.pages; }); }},
      {"absent", [&](const CriuRequest& g, int) { return changed(g, [](CriuRequest& h) { h.flags = 0; }); }},
      {"none", [&](const CriuRequest& g, int) { return changed(g, [](CriuRequest& h) { h.pages = 0; }); }},
      {"a request",
       [&](const CriuRequest& g, int) { return changed(g, [](CriuRequest& h) { h.command = Command::get; }); }},
      {"half",
       [&](const CriuRequest& g, int) {
         auto half = Server::right(g, 0);
         half.resize(half.size() - kPageSize / 2);
         return half;
       }},
      {"twice",
       [&](const CriuRequest& g, int) {
         auto twice = Server::right(g, 0);
         const auto again = twice;
         twice.insert(twice.end(), again.begin(), again.end());
         return twice;
       }},
      {"noise", [&](const CriuRequest&, int) { return std::vector<std::byte>(5000, std::byte{0xaa}); }},
      {"nothing", [&](const CriuRequest&, int) { return std::vector<std::byte>(); }},
  };
  for (const auto& one : wrongs) {
    SCOPED_TRACE(one.first);
    const Server::Answer& wrong = one.second;
    Server server(
        [&](const CriuRequest& get, int n) { return n == 3 || n == 9 ? wrong(get, n) : Server::right(get, n); });
    Sink sink;
    const LoggerPtr log = null_logger();
    auto options = options_for(server);
    options.patience = 200ms;
    RemoteOrigin origin(std::move(options), *log);
    origin.claim(sink, pages(600));
    origin.start(sink);
    origin.want(kTask, kBase + 500 * kPageSize);
    EXPECT_TRUE(until([&] { return sink.pages() == 600; }));
    EXPECT_NO_THROW(origin.check());
    origin.finish();
    EXPECT_GT(server.connections, 1);
    origin.close();
    EXPECT_TRUE(server.closed);
  }
}

TEST(RemoteOrigin, WhatATaskTookWithItIsGivenUp) {
  constexpr MemoryId kOther{MemoryId::Kind::task, kTask.id + 1}, kGone{MemoryId::Kind::task, kTask.id + 2};
  Server server([&](const CriuRequest& get, int n) {
    if (get.memory == kTask) return Server::right(get, n);
    CriuRequest header = get;
    header.command = Command::add_f;
    header.flags = 0;
    header.pages = 0;
    return Server::with(header, {});
  });
  server.dump = "a dump";
  Sink sink;
  std::mutex mutex;
  std::vector<MemoryId> gone;
  RemoteOrigin::Options options = options_for(server);
  options.run_id = server.dump;
  options.gone = [&](MemoryId memory) {
    const std::lock_guard lock(mutex);
    gone.push_back(memory);
  };
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(std::move(options), *log);
  origin.claim(sink, FillOrder({{kGone, {.address = kBase, .pages = 5}, 2},
                                {kTask, {.address = kBase, .pages = 100}, 1},
                                {kOther, {.address = kBase, .pages = 900}}}));
  EXPECT_EQ(gone, std::vector{kGone}) << "another page can be claimed";
  origin.want(kOther, kBase + 70 * kPageSize);
  origin.start(sink);
  EXPECT_TRUE(until([&] { return sink.pages() == 100; }));
  EXPECT_TRUE(until([&] {
    const std::lock_guard lock(mutex);
    return gone.size() > 1;
  }));
  const size_t asked = server.requests().size();
  origin.want(kOther, kBase + 71 * kPageSize);
  origin.finish();
  EXPECT_NO_THROW(origin.check());
  EXPECT_EQ(gone, (std::vector{kGone, kOther}));
  EXPECT_LT(asked, 30u) << "what never comes is not asked for again and again";
}

TEST(RemoteOrigin, ASilentServerIsLeft) {
  std::atomic<bool> silent = true;
  Server server([&](const CriuRequest& get, int n) {
    if (n == 2) until([&] { return !silent.load(); });
    return Server::right(get, n);
  });
  Sink sink;
  const LoggerPtr log = null_logger();
  auto options = options_for(server);
  options.patience = 50ms;
  RemoteOrigin origin(std::move(options), *log);
  origin.claim(sink, pages(600));
  origin.start(sink);
  EXPECT_TRUE(until([&] { return sink.pages() == 600; }));
  EXPECT_GT(server.connections, 1);
  silent = false;
  origin.finish();
}

TEST(RemoteOrigin, WaitsForAServerThatIsGone) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  origin.claim(sink, pages(5000));
  server.open = false;
  origin.start(sink);
  EXPECT_TRUE(until([&] { return server.requests().size() > 1; }));
  server.down = true;
  server.cut();
  server.open = true;
  origin.want(kTask, kBase + 4000 * kPageSize);
  const int tries = server.connections;
  EXPECT_TRUE(until([&] { return server.connections > tries + 3; }));
  EXPECT_NO_THROW(origin.check());
  EXPECT_FALSE(sink.has(4000));
  server.down = false;
  EXPECT_TRUE(until([&] { return sink.pages() == 5000; }));
  origin.finish();
}

TEST(RemoteOrigin, GivesUpWhenToldTo) {
  Server server(
      [](const CriuRequest& get, int n) { return n == 0 ? Server::right(get, n) : std::vector<std::byte>(); });
  Sink sink;
  const LoggerPtr log = null_logger();
  auto options = options_for(server);
  options.recover = 50ms;
  RemoteOrigin origin(std::move(options), *log);
  origin.claim(sink, pages(5000));
  origin.start(sink);
  const auto failed = [&] {
    try {
      origin.check();
      return false;
    } catch (const Error& e) {
      return std::string(e.what()).find("was not reached") != std::string::npos;
    }
  };
  EXPECT_TRUE(until(failed));
}

TEST(RemoteOrigin, AConnectionThatWasCutBeforeTheClaimIsMadeAgain) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  server.cut();
  origin.claim(sink, pages(10));
  EXPECT_EQ(sink.pages(), 1u);
  EXPECT_EQ(server.connections, 2);
  server.down = true;
  server.cut();
  RemoteOrigin::Options lost = options_for(server);
  server.down = false;
  RemoteOrigin other(std::move(lost), *log);
  server.down = true;
  server.cut();
  EXPECT_THROW(other.claim(sink, pages(10)), Error);
}

TEST(RemoteOrigin, WhatCannotBePutInIsTheEnd) {
  Server server;
  Sink sink;
  const LoggerPtr log = null_logger();
  RemoteOrigin origin(options_for(server), *log);
  origin.claim(sink, pages(100));
  sink.fails = true;
  origin.start(sink);
  EXPECT_TRUE(until([&] {
    try {
      origin.check();
      return false;
    } catch (const Error&) {
      return true;
    }
  }));
  EXPECT_EQ(server.connections, 1);
}

TEST(RemoteOrigin, AServerThatIsNotTrustedGivesNothing) {
  Server server;
  const LoggerPtr log = null_logger();
  auto options = options_for(server);
  options.trust = [](const Stream&) { throw Refusal("it is somebody else's", "use another"); };
  EXPECT_THROW(RemoteOrigin(std::move(options), *log), Refusal);
  EXPECT_TRUE(server.requests().empty());
}

TEST(RemoteOrigin, PagesOfAnotherDumpAreNotTaken) {
  for (const char* dump : {"", "one", "another"}) {
    Server server;
    server.dump = dump;
    const LoggerPtr log = null_logger();
    auto options = options_for(server);
    options.run_id = "one";
    if (server.dump == "another") {
      EXPECT_THROW(RemoteOrigin(std::move(options), *log), Refusal);
    } else {
      EXPECT_NO_THROW(RemoteOrigin(std::move(options), *log)) << dump;
    }
    EXPECT_TRUE(server.requests().empty());
  }
}

/// Another dump listens where the one that was lost did: it is passed over until that is there again.
TEST(RemoteOrigin, AnotherDumpInItsPlaceIsPassedOver) {
  Server server;
  server.dump = "one";
  Sink sink;
  const LoggerPtr log = null_logger();
  auto options = options_for(server);
  options.run_id = "one";
  RemoteOrigin origin(std::move(options), *log);
  origin.claim(sink, pages(5000));
  server.open = false;
  origin.start(sink);
  EXPECT_TRUE(until([&] { return server.requests().size() > 1; }));
  Server other;
  other.dump = "another";
  server.instead = &other;
  server.cut();
  server.open = true;
  EXPECT_TRUE(until([&] { return other.connections > 2; }));
  EXPECT_TRUE(other.requests().empty());
  server.instead = nullptr;
  EXPECT_TRUE(until([&] { return sink.pages() == 5000; }));
  origin.finish();
}

}  // namespace
}  // namespace migrate::cli
