#include "migrate/session/lazy/lazy_server.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <system_error>
#include <vector>

#include "core/base/error.h"
#include "lazypages/feed/pace.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/session_streams.h"
#include "migration.pb.h"

namespace migrate {
namespace {

using std::chrono::milliseconds;
using wire::LazyReply;
using wire::LazyRequest;

constexpr milliseconds kTurn{50}, kHandOver{5'000}, kLook{1'000};
/// Enough for holders to enter their cgroups, long before there is anything to hold.
constexpr milliseconds kPlaced{2'000};
/// A thread each. Of an honest source, which comes with growing pauses, one has not ended when the next begins.
constexpr unsigned kMostFeeds = 8;
/// What is remembered begins with one of these; behind kLost stands why, behind the others tasks that have ended at the
/// source.
constexpr char kServing = 's', kWhole = 'w', kLost = 'l', kDiscarded = 'd';
constexpr size_t kMostGivenUp = (LazyHost::kMostRemembered - 1) / sizeof(MemoryId);

LazyMemory from_wire(const wire::LazyMemories::Memory& m) {
  if (m.ranges_size() % 2 != 0 || m.missing_size() % 2 != 0)
    throw Error("receive", "memories from the guardian", EPROTO);
  LazyMemory memory{.memory = {static_cast<MemoryId::Kind>(m.kind()), m.id()}};
  for (int i = 0; i < m.ranges_size(); i += 2)
    memory.ranges.push_back({RemoteAddr(m.ranges(i)), RemoteAddr(m.ranges(i) + m.ranges(i + 1))});
  for (int i = 0; i < m.missing_size(); i += 2)
    memory.missing.push_back({.address = m.missing(i), .pages = m.missing(i + 1)});
  return memory;
}

std::string names_of(const std::set<MemoryId>& memories) {
  constexpr size_t kNamed = 5;
  std::string names;
  size_t n = 0;
  for (const MemoryId memory : memories) {
    if (n++ == kNamed) return names + " and " + std::to_string(memories.size() - kNamed) + " more";
    names += (names.empty() ? "" : ", ") + name_of(memory);
  }
  return names;
}

/// Says in the log what came, in that order.
class ToldSink final : public PageSink {
 public:
  ToldSink(PageSink& sink, Logger& log) : sink_(sink), log_(log) {}
  void write(MemoryId memory, uint64_t address, std::span<const std::byte> data) override {
    log_.debug("came late: {:x} {}", address, data.size() / kPageSize);
    sink_.write(memory, address, data);
  }

 private:
  PageSink& sink_;
  Logger& log_;
};

}  // namespace

LazyServer::LazyServer(LazyHost& host, const LazyServerOptions& options, Logger& log)
    : host_(host), options_(options), log_(log) {
  recall();
  if (!lost_.empty() && host.adopted()) host.memories(wanted())->poison();  // the last may have been killed on its way
  if (!whole_ && lost_.empty() && host.adopted()) begin_serving(host.memories(wanted()));
  if (const int guardian = host.kept("guardian"); guardian >= 0)
    peers_.push_back({PacketSocket(duplicate(guardian)), true});
}

void LazyServer::remember(char word) {
  std::vector<std::byte> bytes(1 + given_up_.size() * sizeof(MemoryId));
  bytes[0] = static_cast<std::byte>(word);
  size_t at = 1;
  for (const MemoryId& memory : given_up_) {
    std::memcpy(bytes.data() + at, &memory, sizeof memory);
    at += sizeof memory;
  }
  host_.remember(bytes);
}

void LazyServer::recall() {
  const std::vector<std::byte> bytes = host_.remembered();
  if (bytes.empty()) return;
  const char word = static_cast<char>(bytes[0]);
  whole_ = word == kWhole;
  discarded_ = word == kDiscarded;
  if (word == kLost) {
    lost_.assign(reinterpret_cast<const char*>(bytes.data()) + 1, bytes.size() - 1);
    return;
  }
  for (size_t at = 1; at + sizeof(MemoryId) <= bytes.size(); at += sizeof(MemoryId)) {
    MemoryId memory;
    std::memcpy(&memory, bytes.data() + at, sizeof memory);
    given_up_.insert(memory);
  }
}

LazyMemories::Wanted LazyServer::wanted() {
  return [this](MemoryId memory, uint64_t page) { wanted_.want(memory, page); };
}

LazyServer::~LazyServer() {
  stop_ = true;
  tell_feed_to_end();
  if (feed_) feed_->thread.join();
  if (faults_.joinable()) faults_.join();
}

void LazyServer::run() {
  while (!over_ && !alone()) turn();
  if (over_) ::unlink(options_.path.c_str());
}

bool LazyServer::alone() const { return memories_ && !whole_ && !is_lost() && host_.alone(); }

bool LazyServer::is_lost() const {
  const std::lock_guard lock(mutex_);
  return !lost_.empty();
}

void LazyServer::turn() {
  if (discarded_ && (!memories_ || whole_ || is_lost())) over_ = true;
  tell_guardian();
  look_without_guardian();
  std::vector<pollfd> p{{host_.kept("listener"), POLLIN, 0}};
  for (const Peer& peer : peers_) p.push_back({peer.socket.fd(), POLLIN, 0});
  if (!guardian_told_) p.push_back({ended_.fd(), POLLIN, 0});
  if (::poll(p.data(), p.size(), static_cast<int>(kTurn.count())) <= 0) return;
  size_t i = 1;
  for (auto peer = peers_.begin(); peer != peers_.end(); ++i) {
    bool stays = true;
    try {
      if (p[i].revents != 0) stays = serve(*peer);
    } catch (const Corrupt& e) {
      // Half of a request that a process of ours read before it was killed: it is made again.
      log_.debug("lazy host: {}", e.what());
      stays = peer->guardian;
    } catch (const Error& e) {
      log_.debug("lazy host: {}", e.what());
      stays = false;
    }
    if (!stays && peer->guardian) host_.drop("guardian");
    // Nobody has given us memories, and nobody will.
    if (!stays && peer->guardian && !memories_ && !whole_ && !is_lost()) over_ = true;
    peer = stays ? std::next(peer) : peers_.erase(peer);
  }
  if (p[0].revents == 0) return;
  if (Fd next(::accept4(p[0].fd, nullptr, nullptr, SOCK_CLOEXEC)); next)
    peers_.push_back({PacketSocket(std::move(next)), false});
}

/// False: the peer is gone.
bool LazyServer::serve(Peer& peer) {
  LazyRequest request;
  if (peer.socket.receive(request, Deadline::in(milliseconds(0))) == PacketSocket::Outcome::closed) return false;
  switch (request.body_case()) {
    case LazyRequest::kMemories:
      adopt(peer);
      return true;
    case LazyRequest::kFeed: {
      LazyReply reply;
      try {
        begin_feed(request.feed());
        reply.set_taken(true);
      } catch (const Error& e) {  // the source may come again
        reply.mutable_failed()->set_sentence(e.what());
      }
      peer.socket.send(reply);
      return true;
    }
    case LazyRequest::kStream: {
      std::vector<Fd> socket = peer.socket.receive_descriptors(1, Deadline::in(kHandOver));
      const std::lock_guard lock(mutex_);
      if (feed_) feed_->sockets.push_back(std::move(socket.front()));
      changed_.notify_all();
      return true;
    }
    case LazyRequest::kAsk:
      reply_state(peer);
      return true;
    case LazyRequest::kLost: {
      const std::lock_guard lock(mutex_);
      lose_ = request.lost();
      return true;
    }
    case LazyRequest::kSettled:
      over_ = whole_ || is_lost();
      return true;
    case LazyRequest::kDiscard: {
      const std::lock_guard lock(mutex_);
      remember(kDiscarded);
      discarded_ = true;
      return true;
    }
    default:
      return false;
  }
}

void LazyServer::adopt(Peer& peer) {
  // From the answer on it must not end with the receiver's cgroup.
  for (const Deadline placed = Deadline::in(kPlaced); !host_.all_placed() && !placed.passed();) ::poll(nullptr, 0, 1);
  if (!host_.all_placed()) log_.warn("a process that holds missing pages may still be in the receiver's cgroup");
  wire::LazyMemories all;
  peer.socket.receive_blob(all, Deadline::in(kHandOver));
  const auto count = static_cast<size_t>(all.memories_size());
  std::vector<Fd> descriptors = peer.socket.receive_descriptors(2 * count, Deadline::in(kHandOver));
  // It is asked again when an answer was lost.
  if (!memories_ && !whole_ && !is_lost()) {
    std::vector<LazyMemory> memories;
    for (size_t i = 0; i < count; ++i) {
      memories.push_back(from_wire(all.memories(static_cast<int>(i))));
      memories.back().userfaultfd = std::move(descriptors[2 * i]);
      memories.back().process = std::move(descriptors[2 * i + 1]);
    }
    begin_serving(host_.adopt(std::move(memories), wanted()));
  }
  LazyReply reply;
  reply.set_adopted(true);
  peer.socket.send(reply);
}

void LazyServer::reply_state(Peer& peer) const {
  LazyReply reply;
  const std::lock_guard lock(mutex_);
  if (!lost_.empty()) {
    reply.set_lost(lost_);
  } else {
    reply.set_missing(whole_ ? 0 : std::max<uint64_t>(memories_ ? memories_->missing_pages() : 1, 1));
    reply.set_given_up(names_of(given_up_));
  }
  peer.socket.send(reply);
}

/// Once more in each process that serves: the last one may have died before it was heard.
void LazyServer::tell_guardian() {
  if (guardian_told_ || (!whole_ && !is_lost())) return;
  guardian_told_ = true;
  for (Peer& peer : peers_) {
    if (!peer.guardian) continue;
    try {
      reply_state(peer);
    } catch (const Error& e) {
      log_.debug("lazy host: {}", e.what());
    }
  }
}

/// The journal may be gone too, with its folder: then nobody will ever say that the session is settled.
void LazyServer::look_without_guardian() {
  const auto now = std::chrono::steady_clock::now();
  if (!options_.settle_alone || host_.kept("guardian") >= 0 || (!whole_ && !is_lost()) || now < look_again_) return;
  look_again_ = now + kLook;
  PagesEnd end;
  {
    const std::lock_guard lock(mutex_);
    end = {.lost = lost_, .given_up = names_of(given_up_)};
  }
  try {
    over_ = options_.settle_alone(end) || over_;
  } catch (const Error& e) {
    log_.debug("lazy host: {}", e.what());
  }
}

void LazyServer::begin_serving(std::unique_ptr<LazyMemories> memories) {
  {
    const std::lock_guard lock(mutex_);
    memories_ = std::move(memories);
  }
  changed_.notify_all();
  faults_ = std::thread([this] { serve_faults(); });
}

void LazyServer::serve_faults() {
  const Prompt before_others;
  try {
    while (!stop_) {
      memories_->serve(kTurn);
      lose_given_up();
      if (memories_->whole()) return end_whole();
      std::string why;
      {
        const std::lock_guard lock(mutex_);
        why = lose_;
      }
      if (!why.empty()) return end_lost(why);
    }
  } catch (const std::exception& e) {
    // Another process of the host has it better, perhaps.
    log_.error("lazy host: {}", e.what());
    ::_exit(1);
  }
}

void LazyServer::end_whole() {
  memories_->finish();
  const std::lock_guard lock(mutex_);
  remember(discarded_ ? kDiscarded : kWhole);
  whole_ = true;
  ended_.trigger();
  if (feed_ && feed_->fetcher != nullptr) feed_->fetcher->whole();
}

void LazyServer::end_lost(const std::string& why) {
  // First: a page that was given up is not missing any more, and who follows would take the program for whole.
  const std::string text = kLost + why;
  {
    const std::lock_guard lock(mutex_);
    host_.remember(as_bytes_of(text));
  }
  memories_->poison();
  const std::lock_guard lock(mutex_);
  lost_ = why;
  ended_.trigger();
  if (feed_ && feed_->fetcher != nullptr) feed_->fetcher->cancel();
}

/// By the thread that receives answers.
void LazyServer::give_up(MemoryId memory) {
  const std::lock_guard lock(mutex_);
  losing_.insert(memory);
}

void LazyServer::lose_given_up() {
  std::set<MemoryId> losing;
  {
    const std::lock_guard lock(mutex_);
    losing = losing_;
  }
  for (const MemoryId memory : losing) {
    note_given_up(memory);
    if (!memories_->try_lose(memory)) continue;
    const std::lock_guard lock(mutex_);
    losing_.erase(memory);
  }
}

/// First: pages that were given up are not missing any more, and who follows would not know of them.
void LazyServer::note_given_up(MemoryId memory) {
  if (given_up_.contains(memory) || given_up_.size() >= kMostGivenUp || !memories_->missing().contains(memory)) return;
  log_.error("{} was killed at the source while pages of it were there: who touches one gets SIGBUS", name_of(memory));
  const std::lock_guard lock(mutex_);
  given_up_.insert(memory);
  remember(discarded_ ? kDiscarded : kServing);
}

// ---- the feed ----

/// Nobody who talks waits for the end of the one before: its threads may be far from the processor.
void LazyServer::begin_feed(const wire::Feed& feed) {
  if (feeds_ >= kMostFeeds)
    throw Error("the source begins feeds faster than they end: " + std::to_string(feeds_) + " have not ended yet");
  tell_feed_to_end();
  auto next = std::make_shared<Feed>();
  next->streams = feed.streams();
  next->codecs = codecs_from_wire(feed.page_codecs());
  next->waits = feed.waits();
  next->before = feed_;
  ++feeds_;
  try {
    next->thread = std::thread([this, &one = *next] {
      if (one.before) one.before->thread.join();
      one.before.reset();
      run_feed(one);
      --feeds_;
    });
  } catch (const std::system_error& e) {
    --feeds_;
    throw Error("start a thread", "for a feed", e.code().value());
  }
  const std::lock_guard lock(mutex_);
  feed_ = std::move(next);
}

void LazyServer::tell_feed_to_end() {
  {
    const std::lock_guard lock(mutex_);
    if (feed_) {
      feed_->ends = true;
      feed_->stop.trigger();
      if (feed_->fetcher != nullptr) feed_->fetcher->cancel();
    }
  }
  changed_.notify_all();
}

void LazyServer::run_feed(Feed& feed) {
  try {
    FeedStreams streams = accept_streams(feed);
    if (!wait_for_memories(feed)) return;
    FetcherOptions options;
    options.codecs = feed.codecs;
    options.waits = feed.waits;
    options.gone = [this](MemoryId memory) { give_up(memory); };
    ToldSink sink(*memories_, log_);
    PageFetcher fetcher(std::move(streams), sink, wanted_, memories_->missing(), false, options);
    {
      const std::lock_guard lock(mutex_);
      if (feed.ends) return;
      feed.fetcher = &fetcher;
      if (whole_) fetcher.whole();
    }
    try {
      fetcher.run();
    } catch (const std::exception& e) {
      log_.warn("pages of the source stay away: {}; the program waits where it needs them", e.what());
    }
    const std::lock_guard lock(mutex_);
    feed.fetcher = nullptr;
  } catch (const std::exception& e) {
    log_.warn("the source's streams: {}", e.what());
  }
}

/// As they come: the source connects one after the other.
FeedStreams LazyServer::accept_streams(Feed& feed) {
  const Deadline deadline = Deadline::in(options_.timeouts.connect);
  const Connector connector(options_.link);  // anew: certificates may have been renewed
  std::vector<std::unique_ptr<Stream>> streams(feed.streams);
  for (uint32_t got = 0; got < feed.streams; ++got) {
    std::optional<Fd> socket = next_socket(feed, deadline);
    if (!socket) throw TimedOut("time is up while waiting for the streams of a feed");
    accept_session_stream(connector, std::move(*socket), options_.session, options_.peer_name, deadline, &feed.stop,
                          streams);
  }
  return FeedStreams::of(std::move(streams));
}

std::optional<Fd> LazyServer::next_socket(Feed& feed, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  const auto came = [&] { return feed.ends || stop_ || !feed.sockets.empty(); };
  if (!changed_.wait_for(lock, milliseconds(deadline.poll_timeout()), came) || feed.sockets.empty())
    return std::nullopt;
  Fd socket = std::move(feed.sockets.front());
  feed.sockets.pop_front();
  return socket;
}

bool LazyServer::wait_for_memories(const Feed& feed) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return feed.ends || stop_ || memories_ != nullptr; });
  return memories_ != nullptr && !feed.ends && !stop_;
}

}  // namespace migrate
