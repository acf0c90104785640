#include "migrate/cli/lazy_serving.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/features.h"
#include "core/memory/page_files.h"
#include "core/restore/lazy_restore.h"
#include "migrate/cli/image_chain.h"
#include "migrate/cli/page_link.h"

namespace migrate::cli {
namespace {

constexpr const char *kImages = "images", *kListener = "listener", *kRestore = "restore";
constexpr std::chrono::milliseconds kTurn{20};

/// What this process has no room for: the next one may have.
bool passes(const Error& e) { return e.code() == EMFILE || e.code() == ENFILE || e.code() == ENOMEM; }

/// What one restore needs of the images.
struct Plan {
  std::vector<LazyMemory> memories;
  std::map<MemoryId, std::vector<StoredPages>> stored;  ///< in the folder
  PagesByMemory named;                                  ///< at the page server

  void add(MemoryId memory, const PageSet& missing, PageImages& pages) {
    const PageSet all(0, kUserSpace);
    auto late = stored_without(pages.locate(pagemap_name(memory)), all - missing);
    named.emplace(memory, only_named(late));
    std::erase_if(late, [](const StoredPages& s) { return s.fd < 0; });
    stored.emplace(memory, std::move(late));
  }
};

Plan plan_for(std::vector<LazyTask> tasks, int images_dir, PageImages& pages) {
  const ImageSet images = ImageSet::load(images_dir);
  const std::vector<TaskNode> nodes = read_tree(images);
  Plan plan;
  for (LazyTask& task : tasks) {
    const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const TaskNode& n) { return n.pid == task.pid; });
    if (node == nodes.end() || node->zombie)
      throw Corrupt("the restore", "it hands over task " + std::to_string(task.pid) + ", which the images do not have");
    const TaskImage image = read_task(images, *node);
    const PageSet missing = lazy_in_images(image, pages);
    LazyMemory memory{.memory = {MemoryId::Kind::task, static_cast<uint64_t>(task.pid)},
                      .userfaultfd = std::move(task.userfaultfd),
                      .process = std::move(task.process),
                      .ranges = lazy_ranges(image, missing),
                      .missing = runs_of(missing, {})};
    plan.add(memory.memory, missing, pages);
    plan.memories.push_back(std::move(memory));
  }
  return plan;
}

/// Of one rank: the images do not tell what was written last.
FillOrder in_any_order(const PagesByMemory& pages) {
  std::vector<RankedRun> all;
  for (const auto& [memory, set] : pages)
    for (const PageRun& run : runs_of(set, {})) all.push_back({.memory = memory, .run = run});
  return FillOrder(std::move(all));
}

PagesByMemory pages_of(const std::map<MemoryId, std::vector<StoredPages>>& stored) {
  PagesByMemory all;
  for (const auto& [memory, runs] : stored)
    for (const StoredPages& s : runs) all[memory].append(s.address, s.address + s.bytes);
  return all;
}

/// The page that is claimed, until there are memories to put it in.
struct ClaimedPage : PageSink {
  MemoryId memory;
  uint64_t address = 0;
  std::vector<std::byte> data;
  void write(MemoryId of, uint64_t at, std::span<const std::byte> page) override {
    memory = of;
    address = at;
    data.assign(page.begin(), page.end());
  }
};

/// Memory of which nothing is missing may also be dead; that is noticed in its own time.
void look_for_dead(LazyMemories& memories) {
  const Deadline deadline = Deadline::in(std::chrono::milliseconds(150));
  while (!deadline.passed()) memories.serve(kTurn);
}

}  // namespace

void refuse_without_server(const PagesByMemory& named, const std::string& folder) {
  for (const auto& [memory, pages] : named) {
    if (pages.empty()) continue;
    throw Refusal("the folder " + folder + " only names " + std::to_string(pages.pages()) + " pages of task " +
                      std::to_string(memory.id) + ", and does not have them",
                  "give --page-server, --address and --port of the `migrate dump --lazy-pages` that made it");
  }
}

void LazyServing::Origins::want(MemoryId memory, uint64_t page) {
  if (remote != nullptr && named.at(memory).contains(page)) return remote->want(memory, page);
  stored.want(memory, page);
}

void LazyServing::Origins::stop() {
  stored.stop();
  if (remote != nullptr) remote->stop();
}

void LazyServing::Origins::check() const {
  stored.check();
  if (remote != nullptr) remote->check();
}

/// Published with what it says. At most kMostRemembered bytes: `why` is cut.
void LazyServing::remember(Phase phase, const std::string& why) {
  state_.phase = phase;
  std::vector<std::byte> bytes(sizeof state_);
  std::memcpy(bytes.data(), &state_, sizeof state_);
  std::ranges::copy(as_bytes_of(why.substr(0, 1000)), std::back_inserter(bytes));
  host_.remember(bytes);
}

std::string LazyServing::recall() {
  const std::vector<std::byte> bytes = host_.remembered();
  if (bytes.size() < sizeof state_) return {};
  std::memcpy(&state_, bytes.data(), sizeof state_);
  return {reinterpret_cast<const char*>(bytes.data()) + sizeof state_, bytes.size() - sizeof state_};
}

std::unique_ptr<RemoteOrigin> LazyServing::connect(bool resumes) {
  if (!options_.page_server) return nullptr;
  RemoteOrigin::Options options{.connect = [this] { return connect_page_server(options_); },
                                .run_id = run_id_of(host_.kept(kImages), "."),
                                .trust = [this](const Stream& stream) { check_page_server(stream, options_.insecure); },
                                .gone =
                                    [this](MemoryId memory) {
                                      const std::lock_guard lock(mutex_);
                                      losing_.insert(memory);
                                    },
                                .resumes = resumes};
  if (state_.phase == Phase::closes) options.ending = std::chrono::seconds(1);
  if (options_.recover_timeout_seconds > 0) options.recover = std::chrono::seconds(options_.recover_timeout_seconds);
  return std::make_unique<RemoteOrigin>(std::move(options), log_);
}

LazyMemories::Wanted LazyServing::wanted() {
  return [this](MemoryId memory, uint64_t page) { origins_->want(memory, page); };
}

void LazyServing::run() {
  if (host_.adopted()) {
    take_over();
  } else {
    try {
      if (!begin()) return;
    } catch (const Error& e) {
      if (host_.adopted()) throw;
      return front_.ended(dynamic_cast<const Refusal*>(&e) != nullptr ? 2 : 1, e.what());
    }
  }
  if (bring()) end();
}

// ---- before a tree is ours: whoever is killed here has taken nothing ----

/// False: there was no restore, and there will be none.
bool LazyServing::begin() {
  host_.drop(kRestore);  // of a process before this one, whose end it sees
  // Before anybody can restore: then the page server knows of us when a tree begins to run here.
  remote_ = connect(false);
  front_.step("connected");
  const int kept = host_.kept(kListener);
  std::optional<LazyListener> listener;
  if (kept < 0) {
    listener.emplace(options_.effective_work_dir());
    host_.keep(kListener, duplicate(listener->fd()));
  } else {
    listener.emplace(options_.effective_work_dir(), duplicate(kept));
  }
  front_.ready();
  front_.step("listening");
  restore_ = await_restore(*listener);
  if (!restore_) return false;
  host_.drop(kListener);  // first: a name without a socket is replaced
  front_.step("received");
  listener.reset();
  images_.emplace(host_.kept(kImages));
  adopt(restore_->take_tasks(), *images_);
  return true;
}

/// nullopt: the front is gone. Throws Error if the page server is: a restore that comes now could bring no page.
std::optional<LazyRestore> LazyServing::await_restore(LazyListener& listener) {
  std::optional<std::chrono::milliseconds> pause;  // until the server is tried again
  for (;;) {
    std::array<pollfd, 3> waited{pollfd{front_.fd(), POLLIN, 0}, pollfd{listener.fd(), POLLIN, 0},
                                 pollfd{remote_ ? remote_->fd() : -1, POLLRDHUP, 0}};
    const int some = ::poll(waited.data(), waited.size(), pause ? static_cast<int>(pause->count()) : -1);
    if (some < 0) continue;
    if (waited[0].revents != 0) return std::nullopt;
    if (waited[1].revents != 0) {
      if (auto restore = listener.receive_now()) return restore;
    }
    if (waited[2].revents == 0 && some != 0) continue;
    try {
      pause = remote_->reconnect_unclaimed();
    } catch (const Error& e) {
      log_.error("{}; no restore has come", e.what());  // standard error may be closed by now
      throw;
    }
  }
}

void LazyServing::adopt(std::vector<LazyTask> tasks, PageImages& pages) {
  Plan plan = plan_for(std::move(tasks), host_.kept(kImages), pages);
  if (!remote_) refuse_without_server(plan.named, options_.images_dir);
  origins_ = std::make_unique<Origins>(plan.stored, remote_.get(), plan.named);
  stored_order_ = in_any_order(pages_of(plan.stored));
  ClaimedPage claimed;
  if (remote_) remote_->claim(claimed, in_any_order(plan.named));
  front_.step("page-claimed");
  host_.keep(kRestore, duplicate(restore_->fd()));
  state_ = {.ours = restore_->state(false) != LazyRestore::State::not_ours,
            .closed = remote_ && remote_->closed(),
            .spaces = plan.memories.size()};
  for (const LazyMemory& memory : plan.memories)
    for (const PageRun& run : memory.missing) state_.pages += run.pages;
  remember(Phase::adopted);
  memories_ = host_.adopt(std::move(plan.memories), wanted());
  front_.step("adopted");
  front_.adopted();
  if (!claimed.data.empty()) memories_->write(claimed.memory, claimed.address, claimed.data);
}

// ---- from here on pages depend on us ----

/// Of a process that is gone.
void LazyServing::take_over() {
  const std::string why = recall();
  front_.adopted();
  restore_.emplace(std::vector<LazyTask>(), duplicate(host_.kept(kRestore)), state_.ours);
  memories_ = host_.memories(wanted());
  if (state_.phase == Phase::lost) return lose(why);
  if (!state_.closed) remote_ = connect(true);
  if (state_.phase >= Phase::whole) return;
  try {
    find_origins();
  } catch (const Error& e) {
    if (passes(e)) throw;
    lose(e.what());
  }
}

void LazyServing::find_origins() {
  images_.emplace(host_.kept(kImages));
  Plan plan;
  for (const auto& [memory, runs] : memories_->missing()) plan.add(memory, migrate::pages_of(runs), *images_);
  origins_ = std::make_unique<Origins>(plan.stored, remote_.get(), plan.named);
  stored_order_ = in_any_order(pages_of(plan.stored));
  if (remote_) remote_->resume(in_any_order(plan.named));
}

/// CRIU's restore lets its tree run whatever we do; ours waits for this.
void LazyServing::let_run() {
  try {
    restore_->go();
  } catch (const Error& e) {
    log_.warn("{}", e.what());  // its tasks go with it
  }
  front_.step("told-to-run");
  remember(Phase::runs);
  front_.step("runs");
}

/// Until they have all pages, or have ended. False: it is over, or not ours to end.
bool LazyServing::bring() {
  if (state_.phase == Phase::lost) return false;
  if (state_.phase >= Phase::whole) {
    memories_->finish();
    return true;
  }
  if (state_.phase == Phase::adopted) let_run();
  origins_->stored.start(*memories_, std::exchange(stored_order_, {}));
  if (remote_) remote_->start(*memories_);
  while (!memories_->whole()) {
    memories_->serve(kTurn);
    lose_gone();
    try {
      origins_->check();
    } catch (const Error& e) {
      if (passes(e)) throw;
      lose(e.what());
      return false;
    }
    if (host_.alone()) {
      origins_->stop();
      return false;
    }
  }
  end_whole();
  return true;
}

void LazyServing::end_whole() {
  if (restore_->state(false) == LazyRestore::State::not_ours) look_for_dead(*memories_);
  state_.all_alive = memories_->spaces() >= state_.spaces;
  remember(Phase::whole);
  front_.step("whole");
  origins_->stored.stop();
  memories_->finish();
  front_.step("given-back");
  if (remote_) remote_->finish();
}

/// Nothing reads zeros in the place of what is missing.
void LazyServing::lose(const std::string& why) {
  log_.error("{}; {} pages are lost: who touches one gets SIGBUS", why, memories_->missing_pages());
  remember(Phase::lost, why);
  if (origins_) origins_->stop();
  memories_->poison();
  front_.ended(1, why);
}

/// The others have their pages, or get them.
void LazyServing::lose_gone() {
  std::set<MemoryId> losing;
  {
    const std::lock_guard lock(mutex_);
    losing.swap(losing_);
  }
  if (losing.empty()) return;
  if (!can_poison_pages()) {
    log_.error(
        "a task was killed at the page server, and this kernel cannot make its missing pages raise SIGBUS (Linux 6.6 "
        "can): who touches one waits for ever");
    return;
  }
  for (const MemoryId memory : losing) {
    if (memories_->missing().contains(memory) && told_.insert(memory).second) {
      log_.error("{} was killed at the page server while pages of it were there: who touches one gets SIGBUS",
                 name_of(memory));
      note_gone(memory.id);
    }
    if (memories_->try_lose(memory)) continue;
    const std::lock_guard lock(mutex_);
    losing_.insert(memory);
  }
}

/// Once, also if the process before this one knew.
void LazyServing::note_gone(uint64_t task) {
  const auto known = std::span(state_.gone_ids).first(std::min<size_t>(state_.gone, state_.gone_ids.size()));
  if (std::ranges::find(known, task) != known.end()) return;
  if (state_.gone < state_.gone_ids.size()) state_.gone_ids[state_.gone] = task;
  ++state_.gone;
  remember(state_.phase);
}

/// Whether the page server may end what it holds: not if nobody can tell that the tree has run here.
bool LazyServing::has_run() {
  switch (restore_->state(true)) {
    case LazyRestore::State::runs:
      return true;
    case LazyRestore::State::not_ours:
      return state_.all_alive;  // else it may have failed in its last step
    default:
      return false;
  }
}

/// That all pages are here. A process that was killed may have told it, so that it has ended: then nobody can tell.
void LazyServing::tell_server() {
  const bool told = state_.phase == Phase::closes;
  remember(Phase::closes);
  front_.step("closing");
  try {
    remote_->close();
    front_.step("closed");
  } catch (const Error& e) {
    if (!told) throw;
    log_.warn("{}: it may have heard that, and have ended", e.what());
  }
}

void LazyServing::end() {
  try {
    if (options_.page_server && !has_run())
      throw Error("the restore has ended without a word that the tree runs: the page server keeps what it holds");
    if (remote_) tell_server();
  } catch (const Error& e) {
    log_.error("{}", e.what());
    return front_.ended(1, e.what());
  }
  log_.info("{} pages came while the tree ran", state_.pages);
  if (state_.gone == 0) {
    front_.ended(0);
  } else {
    const std::string more = state_.gone == 1 ? "" : " and " + std::to_string(state_.gone - 1) + " more";
    front_.ended(1, "pages of task " + std::to_string(state_.gone_ids.front()) + more +
                        " are lost, killed at the page server while they were there: who touches one gets SIGBUS");
  }
  front_.step("ended");
}

}  // namespace migrate::cli
