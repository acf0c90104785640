// What post-copy's feed costs: a frozen source process, TLS over loopback, a running program whose memory is missing.
// Prints one JSON object a run:
//   plain   the same bytes in a pass of page streams, put into memory of which nobody touches a page
//   idle    the chain fault, request, read, TLS, copy, running, with nothing else on its way
//   feed    the program touches pages at a rate while the fill runs: until all is here, and what the faults take
//   lazy_feed [MiB [FILL_STREAMS [PAUSE_US [RUNS [idle|normal [COMPETITORS]]]]]]
// COMPETITORS: threads that do nothing but want processors, meanwhile.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <thread>

#include "bench/lazy_bench.h"
#include "lazypages/feed/pace.h"
#include "lazypages/feed/page_feeder.h"
#include "lazypages/feed/page_fetcher.h"
#include "lazypages/lazy_memories.h"
#include "pageserver/keys.h"
#include "pageserver/tcp.h"
#include "pageserver/tls.h"

namespace migrate {
namespace {

using Clock = std::chrono::steady_clock;
constexpr MemoryId kMemory{MemoryId::Kind::task, 1};

struct Options {
  uint64_t pages = 1024 * 256;
  size_t streams = 1;
  std::chrono::microseconds pause{100};
  int runs = 3;
  bool idle = true;
  int competitors = 0;
};

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A stopped process whose memory has something in every page.
class Source {
 public:
  explicit Source(uint64_t pages) : pid_(::fork()) {
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      auto* at = static_cast<uint64_t*>(
          ::mmap(kPlace, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      std::mt19937_64 random(7);
      for (uint64_t i = 0; i < pages * 512; ++i) at[i] = random();
      ::raise(SIGSTOP);
      ::_exit(0);
    }
    ::waitpid(pid_, nullptr, WUNTRACED);
    sources_.resize(1);
    sources_[0].memory = kMemory;
    sources_[0].runs = {{reinterpret_cast<uint64_t>(kPlace), pages}};
    sources_[0].fd = open_path("/proc/" + std::to_string(pid_) + "/mem", O_RDONLY);
  }
  ~Source() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  std::span<const PageSource> sources() const { return sources_; }

 private:
  pid_t pid_;
  std::vector<PageSource> sources_;
};

class Network {
 public:
  Network() {
    std::string name = (std::filesystem::temp_directory_path() / "lazy-feed-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw Error("make", name, errno);
    dir_ = name;
    make_keys({.dir = dir_, .names = {"host"}});
    TlsConfig config;
    config.cacert = dir_ + "/ca.crt";
    config.cert = dir_ + "/host.crt";
    config.key = dir_ + "/host.key";
    tls_ = std::make_unique<TlsContext>(config);
  }
  ~Network() {
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> pair() {
    const auto soon = [] { return Deadline::in(std::chrono::seconds(10)); };
    Listener listener({"127.0.0.1", 0});
    Fd client = connect_tcp({"127.0.0.1", listener.port()}, soon());
    Fd server = *listener.accept(nullptr, soon());
    auto accepting = std::async(std::launch::async, [&] { return tls_->accept(std::move(server), soon()); });
    auto out = tls_->connect(std::move(client), "host", soon());
    return {std::move(out), accepting.get()};
  }
  std::pair<FeedStreams, FeedStreams> feed(size_t streams) {
    FeedStreams source, destination;
    std::tie(source.urgent, destination.urgent) = pair();
    for (size_t i = 0; i < streams; ++i) {
      auto [a, b] = pair();
      source.fill.push_back(std::move(a));
      destination.fill.push_back(std::move(b));
    }
    return {std::move(source), std::move(destination)};
  }

 private:
  std::string dir_;
  std::unique_ptr<TlsContext> tls_;
};

/// A program whose memory is missing, and the loop that serves its faults.
class Destination {
 public:
  Destination(uint64_t pages, uint64_t touches, std::chrono::microseconds pause, WantedPages& wanted)
      : shared_(LazyShared::make()), program_(*shared_, pages, touches, pause) {
    std::vector<LazyMemory> all;
    all.push_back(program_.registered(kMemory));
    memories_ = std::make_unique<LazyMemories>(
        std::move(all), [&wanted](MemoryId memory, uint64_t address) { wanted.want(memory, address); });
    loop_ = std::jthread([this](const std::stop_token& stop) {
      const Prompt prompt;
      while (!stop.stop_requested()) memories_->serve(std::chrono::milliseconds(10));
    });
  }
  ~Destination() { ::munmap(shared_, sizeof *shared_); }
  Destination(const Destination&) = delete;
  Destination& operator=(const Destination&) = delete;
  LazyMemories& memories() { return *memories_; }
  LazyShared& shared() { return *shared_; }

 private:
  LazyShared* shared_;
  LazyProgram program_;
  std::unique_ptr<LazyMemories> memories_;
  std::jthread loop_;
};

void plain(const Options& o, Network& network, const Source& source) {
  WantedPages nobody;
  Destination destination(o.pages, 0, {}, nobody);
  std::vector<std::unique_ptr<Stream>> out, in;
  for (size_t i = 0; i < o.streams; ++i) {
    auto [a, b] = network.pair();
    out.push_back(std::move(a));
    in.push_back(std::move(b));
  }
  PageSender sender(std::move(out));
  PageReceiver receiver(std::move(in), destination.memories());
  const auto start = Clock::now();
  auto receiving = std::async(std::launch::async, [&] { receiver.receive(); });
  sender.send(source.sources());
  receiving.get();
  std::printf("{\"plain_s\": %.3f, ", since(start));
}

/// `fill`: else nothing is, but what is asked for.
void feed(const Options& o, Network& network, const Source& source, bool fill) {
  WantedPages wanted;
  Destination destination(o.pages, UINT64_MAX, o.pause, wanted);
  auto [a, b] = network.feed(o.streams);
  PageFeeder feeder(std::move(a), source.sources(), {}, {.idle = o.idle});
  PageFetcher fetcher(std::move(b), destination.memories(), wanted,
                      fill ? destination.memories().missing() : MissingRuns{}, fill, {.idle = o.idle});
  const auto start = Clock::now();
  destination.shared().go = true;
  std::thread sending([&] { feeder.run(); }), fetching([&] { fetcher.run(); });
  if (fill) {
    while (!destination.memories().whole()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  } else {
    std::this_thread::sleep_for(std::chrono::seconds(2));
  }
  destination.shared().stop = true;
  const double took = since(start);
  fetcher.whole();
  sending.join();
  fetching.join();
  LazyShared& s = destination.shared();
  const WantedStatistics w = wanted.statistics();
  double stalls = 0;
  for (uint64_t i = 0; i < s.count; ++i) stalls += s.us[i] > 3000 ? s.us[i] / 1e6 : 0;
  if (fill) std::printf("\"feed_s\": %.3f, \"stalls_over_3ms_s\": %.3f, ", took, stalls);
  std::printf(
      "\"%s\": {\"faults\": %lu, \"median_us\": %.1f, \"p99_us\": %.0f, \"max_us\": %.0f, \"requests\": %lu, "
      "\"by_fill\": %lu, \"ours_median_us\": %lu, \"ours_p99_us\": %lu}%s",
      fill ? "beside" : "idle", static_cast<unsigned long>(s.count), s.quantile(0.5), s.quantile(0.99), s.quantile(1),
      static_cast<unsigned long>(w.wanted), static_cast<unsigned long>(w.by_fill),
      static_cast<unsigned long>(w.latencies.quantile_us(0.5)),
      static_cast<unsigned long>(w.latencies.quantile_us(0.99)), fill ? "}\n" : ", ");
}

int main_of(const Options& o) {
  Network network;
  const Source source(o.pages);
  std::vector<std::jthread> busy;
  for (int i = 0; i < o.competitors; ++i)
    busy.emplace_back([](const std::stop_token& stop) {
      while (!stop.stop_requested()) continue;
    });
  for (int i = 0; i < o.runs; ++i) {
    plain(o, network, source);
    feed(o, network, source, false);
    feed(o, network, source, true);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace migrate

int main(int argc, char** argv) {
  migrate::Options o;
  const auto number = [&](int i, uint64_t otherwise) {
    return argc > i ? std::strtoull(argv[i], nullptr, 10) : otherwise;
  };
  o.pages = number(1, 1024) * 256;
  o.streams = number(2, 1);
  o.pause = std::chrono::microseconds(number(3, 100));
  o.runs = static_cast<int>(number(4, 3));
  o.idle = argc <= 5 || argv[5][0] == 'i';
  o.competitors = static_cast<int>(number(6, 0));
  return migrate::main_of(o);
}
