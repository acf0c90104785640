#include "migrate/cli/remote_origin.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/error.h"
#include "lazypages/idle.h"

namespace migrate::cli {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kLeastWindow = 64 << 10, kFirstWindow = 256 << 10, kMostWindow = 16 << 20;
/// What should wait in the narrowest place between here and there: less does not fill it, more delays who waits.
constexpr uint64_t kLeastQueue = 64 << 10, kMostQueue = 192 << 10;
/// So long the fill steps back for the program; after that it must come to an end.
constexpr std::chrono::seconds kPolite(10);
constexpr milliseconds kLeastDelay(1);

}  // namespace

RemoteOrigin::RemoteOrigin(Options options, Logger& log)
    : options_(std::move(options)), log_(log), window_(kFirstWindow) {
  if (!options_.resumes) connect();
}

void RemoteOrigin::stop() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = cancelled_ = true;
    if (client_) client_->stream().abort();
  }
  wakeup_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void RemoteOrigin::connect() {
  auto client = std::make_unique<CriuGetClient>(options_.connect(), options_.patience);
  const bool right = client->may_be(options_.run_id);
  options_.trust(client->stream());
  if (!right)
    throw Refusal("page server " + client->stream().peer() + " has the pages of another dump than the images here",
                  "restore from the folder that this dump has written");
  const std::lock_guard lock(mutex_);
  client_ = std::move(client);
  connected_at_ = Clock::now();
}

std::optional<milliseconds> RemoteOrigin::reconnect_unclaimed() {
  const auto now = Clock::now();
  if (client_) {
    log_.warn("the connection with page server {} is cut before a restore has come", client_->stream().peer());
    disconnect();
    lost_since_ = now;
    // Another daemon that waits as we do has taken our place, perhaps, and we shall take its.
    const bool lasted = now - connected_at_ > 2 * options_.longest_delay;
    delay_ = lasted || delay_ == milliseconds(0) ? options_.first_delay : std::min(2 * delay_, options_.longest_delay);
    return delay_;
  }
  try {
    connect();
    log_.warn("connected with page server {} again", client_->stream().peer());
    lost_since_.reset();
    return std::nullopt;
  } catch (const Refusal&) {
    throw;
  } catch (const Error& e) {
    log_.info("{}", e.what());
    give_up_in_time(e, options_.recover.value_or(options_.unclaimed));
  }
  return delay_ = std::min(2 * delay_, options_.longest_delay);
}

void RemoteOrigin::disconnect() {
  const std::lock_guard lock(mutex_);
  client_.reset();
}

void RemoteOrigin::want(MemoryId memory, uint64_t address) {
  {
    const std::lock_guard lock(mutex_);
    if (gone_.contains(memory)) return;
    wanted_.emplace_back(memory, address);
    waited_for_.emplace(memory, address);
    order_.faulted(memory, address);
    if (std::exchange(idle_, false)) {
      const sched_param none{};
      ::sched_setscheduler(taker_, SCHED_OTHER, &none);
    }
  }
  wakeup_.notify_all();
}

void RemoteOrigin::claim(PageSink& sink, FillOrder order) {
  order_ = std::move(order);
  lost_since_.reset();
  while (const auto piece = order_.next(kPageSize)) {
    const AskedPages asked{piece->memory, piece->address, 1};
    std::vector<std::byte> page(kPageSize);
    if (claim_page(asked, page)) return sink.write(asked.memory, asked.address, page);
    const std::lock_guard lock(mutex_);
    never_comes(asked.memory);
  }
  if (!gone_.empty()) throw Error("all tasks whose pages were kept have ended at the page server");
  close();
}

/// False: its task has ended there.
bool RemoteOrigin::claim_page(const AskedPages& asked, std::span<std::byte> page) {
  for (bool again = false;; again = true) {
    try {
      if (!client_) connect();
      client_->ask(asked);
      return client_->take(asked, page) != 0;
    } catch (const Disconnected& e) {
      // It may have been cut long ago, while nobody had anything to say.
      disconnect();
      if (again) throw;
      log_.info("{}; connecting again", e.what());
    }
  }
}

void RemoteOrigin::start(PageSink& sink) {
  if (closed_) return;
  started_ = Clock::now();
  thread_ = std::thread([this, &sink] { run(sink); });
}

void RemoteOrigin::check() const {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

void RemoteOrigin::run(PageSink& sink) {
  try {
    {
      const std::lock_guard lock(mutex_);
      taker_ = ::gettid();
    }
    if (options_.resumes) {
      lost_since_ = Clock::now();
      delay_ = kLeastDelay;
      if (!reconnect()) return;
    }
    for (;;) {
      try {
        return converse(sink);
      } catch (const Error& e) {
        disconnect();
        if (failure_) return;
        give_up_in_time(e, options_.recover);
        log_.warn("{}; who touches a page that is missing waits", e.what());
      }
      take_back();
      if (!reconnect()) return;
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

/// Takes answers until it ends, with nothing on its way.
void RemoteOrigin::converse(PageSink& sink) {
  {
    const std::lock_guard lock(mutex_);
    broken_ = false;
  }
  std::thread asking([this] { ask_on(*client_); });
  const auto end_asking = [&] {
    {
      const std::lock_guard lock(mutex_);
      broken_ = true;
    }
    wakeup_.notify_all();
    asking.join();
  };
  try {
    std::vector<std::byte> buffer(FillOrder::kMostBytes);
    while (const auto asked = oldest()) {
      const uint64_t pages = client_->take(*asked, buffer);
      lost_since_.reset();
      wake_up();
      try {
        if (pages > 0) sink.write(asked->memory, asked->address, std::span(buffer).first(pages * kPageSize));
      } catch (...) {
        const std::lock_guard lock(mutex_);
        failure_ = std::current_exception();
        throw;
      }
      came(*asked, pages);
    }
  } catch (...) {
    wake_up();
    client_->stream().abort();  // it may be in the middle of asking
    end_asking();
    throw;
  }
  end_asking();
}

/// What the next answer is to; waits for it. nullopt: it ends, and nothing is on its way.
std::optional<RemoteOrigin::Asked> RemoteOrigin::oldest() {
  std::unique_lock lock(mutex_);
  wakeup_.wait(lock, [&] { return broken_ || ending_ || !asked_.empty(); });
  if (broken_) throw Disconnected("the connection with page server " + client_->stream().peer() + " is cut");
  if (cancelled_ || asked_.empty()) return std::nullopt;
  rest();
  return asked_.front();
}

/// With the lock held: the processor is the program's, as long as nobody waits for us.
void RemoteOrigin::rest() {
  if (!waited_for_.empty() || Clock::now() - started_ > kPolite) return;
  idle_ = true;
  become_idle();
}

/// Who holds a lock must not wait for the program.
void RemoteOrigin::wake_up() {
  const sched_param none{};
  ::sched_setscheduler(0, SCHED_OTHER, &none);
  const std::lock_guard lock(mutex_);
  idle_ = false;
}

/// The asking thread.
void RemoteOrigin::ask_on(CriuGetClient& client) {
  try {
    for (;;) {
      std::optional<Asked> wish;
      {
        std::unique_lock lock(mutex_);
        wakeup_.wait(lock, [&] { return broken_ || ending_ || may_ask(); });
        if (broken_ || ending_) return;
        wish = next_wish();
        if (!wish) continue;
        asked_.push_back(*wish);
        bytes_asked_ += wish->pages * kPageSize;
      }
      wakeup_.notify_all();
      client.ask(*wish);
    }
  } catch (const Error&) {
    {
      const std::lock_guard lock(mutex_);
      broken_ = true;
    }
    wakeup_.notify_all();
    client.stream().abort();  // whoever takes answers finds out
  }
}

bool RemoteOrigin::may_ask() const { return !wanted_.empty() || (order_.pages_left() != 0 && bytes_asked_ < window_); }

bool RemoteOrigin::on_its_way(MemoryId memory, uint64_t address) const {
  return std::ranges::any_of(asked_, [&](const Asked& a) {
    return a.memory == memory && a.address <= address && address < a.address + a.pages * kPageSize;
  });
}

std::optional<RemoteOrigin::Asked> RemoteOrigin::next_wish() {
  if (!wanted_.empty()) {
    const auto [memory, address] = wanted_.front();
    wanted_.pop_front();
    if (on_its_way(memory, address)) return std::nullopt;
    return Asked{{memory, address, 1}, true, Clock::now()};
  }
  const auto piece = order_.next();
  if (!piece) return std::nullopt;
  return Asked{{piece->memory, piece->address, piece->bytes / kPageSize}, false, Clock::now()};
}

/// The first pages of the oldest request have come, and are where they belong.
void RemoteOrigin::came(const Asked& asked, uint64_t pages) {
  {
    const std::lock_guard lock(mutex_);
    const uint64_t end = asked.address + pages * kPageSize;
    asked_.pop_front();
    bytes_asked_ -= asked.pages * kPageSize;
    waited_for_.erase(waited_for_.lower_bound({asked.memory, asked.address}),
                      waited_for_.lower_bound({asked.memory, end}));
    if (pages == 0) {
      never_comes(asked.memory);
    } else if (pages < asked.pages) {
      // CRIU's server stops where one of its buffers ends.
      ask_again(asked.memory, end, (asked.pages - pages) * kPageSize);
    } else if (!asked.fault) {
      widen_or_narrow(asked);
    }
  }
  wakeup_.notify_all();
}

/// With the lock held.
void RemoteOrigin::never_comes(MemoryId memory) {
  order_.leave_out(memory, 0, kUserSpace);
  std::erase_if(wanted_, [&](const auto& page) { return page.first == memory; });
  std::erase_if(waited_for_, [&](const auto& page) { return page.first == memory; });
  if (gone_.insert(memory).second) options_.gone(memory);
}

/// With the lock held.
void RemoteOrigin::ask_again(MemoryId memory, uint64_t address, uint64_t bytes) {
  if (gone_.contains(memory)) return;
  order_.put_back(memory, address, bytes);
  for (auto i = waited_for_.lower_bound({memory, address}); i != waited_for_.lower_bound({memory, address + bytes});
       ++i) {
    if (std::ranges::find(wanted_, *i) == wanted_.end()) wanted_.push_back(*i);
    order_.faulted(memory, i->second);
  }
}

/// As TCP Vegas does: an answer that takes longer than the quickest one has waited for others before it.
void RemoteOrigin::widen_or_narrow(const Asked& asked) {
  const auto round = Clock::now() - asked.at;
  if (least_round_ == Clock::duration::zero() || round < least_round_) least_round_ = round;
  const double waited = 1 - std::chrono::duration<double>(least_round_) / std::chrono::duration<double>(round);
  const auto queue = static_cast<uint64_t>(static_cast<double>(window_) * waited);
  if (queue < kLeastQueue) window_ = std::min(window_ + kLeastWindow / 2, kMostWindow);
  if (queue > kMostQueue) window_ = std::max(window_ - kLeastWindow / 2, kLeastWindow);
}

/// What was on its way will not come.
void RemoteOrigin::take_back() {
  const std::lock_guard lock(mutex_);
  for (const Asked& asked : std::exchange(asked_, {})) ask_again(asked.memory, asked.address, asked.pages * kPageSize);
  bytes_asked_ = 0;
  window_ = kFirstWindow;
  least_round_ = {};
}

/// False: it ends. Who answers the call but no question is not there either.
bool RemoteOrigin::reconnect() {
  const auto now = Clock::now();
  if (!lost_since_) {
    lost_since_ = now;
    delay_ = options_.first_delay;
  }
  for (;; delay_ = std::min(2 * delay_, options_.longest_delay)) {
    {
      std::unique_lock lock(mutex_);
      if (wakeup_.wait_for(lock, std::max(delay_, kLeastDelay), [&] { return ending_; })) return false;
    }
    try {
      connect();
      log_.warn("connected with page server {} again", client_->stream().peer());
      delay_ = std::min(2 * delay_, options_.longest_delay);
      return true;
    } catch (const Error& e) {
      log_.info("{}", e.what());
      give_up_in_time(e, options_.recover);
    }
  }
}

void RemoteOrigin::give_up_in_time(const Error& reason, std::optional<milliseconds> after) const {
  if (!after || !lost_since_ || Clock::now() - *lost_since_ < *after) return;
  throw Error("the page server was not reached for " + std::to_string(after->count() / 1000) + " s (" + reason.what() +
              ")");
}

void RemoteOrigin::finish() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wakeup_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void RemoteOrigin::close() {
  if (closed_) return;
  const auto until = Clock::now() + options_.ending;
  for (milliseconds delay = options_.first_delay;; delay *= 2) {
    try {
      if (!client_) connect();
      client_->close();
      closed_ = true;
      return;
    } catch (const Error& e) {
      disconnect();
      if (Clock::now() + delay > until)
        throw Error(std::string("the page server could not be told that all pages are here (") + e.what() + ")");
    }
    std::this_thread::sleep_for(delay);
  }
}

}  // namespace migrate::cli
