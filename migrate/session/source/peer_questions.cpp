#include "migrate/session/source/peer_questions.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/looked_at.h"
#include "core/base/refusals.h"
#include "core/dump/preflight.h"
#include "core/inject/lock_visit.h"
#include "migrate/session/guardian/packet.h"
#include "migrate/session/source/inventory_privileges.h"
#include "migrate/session/telling/fault.h"

namespace migrate {
namespace {

using wire::Message;

bool asks_nothing(const wire::Check& check) {
  return check.files_size() == 0 && check.made_size() == 0 && check.ports_size() == 0 && check.uids_size() == 0 &&
         check.gids_size() == 0 && check.privileges_size() == 0 && check.capabilities() == 0 &&
         check.strangers_size() == 0 && check.kernel_mappings_size() == 0 && !check.has_lowest_oom_score() &&
         !check.has_queued_signals();
}

/// st_dev of what has that name now; the program may put something else there at any time.
std::optional<uint64_t> device_of(const std::string& path) {
  struct stat st {};
  const Fd found = find_by_name(path);
  if (!found || ::fstat(found.get(), &st) != 0) return std::nullopt;
  return st.st_dev;
}

}  // namespace

PeerQuestions::PeerQuestions(const SendOptions& options, SourcePeer& peer, Pid target, const std::string& label,
                             Events& events)
    : options_(options), peer_(peer), target_(target), label_(label), events_(events) {}

void PeerQuestions::take_stock() { inventory_ = take_inventory(target_, InventoryDepth::whole); }

std::vector<std::string> PeerQuestions::ask(wire::Check& check) {
  if (asks_nothing(check)) return {};
  std::optional<FileProbes> probes;
  if (!options_.files_shared) {
    probes.emplace(check);
  } else {
    for (auto& file : *check.mutable_files()) file.set_shared(file.writable() || file.locks_size() > 0);
  }
  Message message;
  *message.mutable_check() = check;
  peer_.channel().send(std::move(message));
  const wire::CheckReply reply = peer_.channel().expect(Message::kCheckReply, peer_.answer_by()).check_reply();
  const std::set<std::string> shared(reply.shared().begin(), reply.shared().end());
  for (const auto& file : check.files()) {
    const auto device = shared.contains(file.path()) ? device_of(file.path()) : std::nullopt;
    if (device) shared_devices_.insert(*device);
  }
  return {reply.refusals().begin(), reply.refusals().end()};
}

std::vector<std::string> PeerQuestions::ask_twice(const std::function<wire::Check&(int)>& look) {
  constexpr int kTries = 10;
  std::vector<std::string> before;
  for (int tries = 1;; ++tries) {
    std::vector<std::string> reasons = ask(look(tries));
    const auto stays = [&](const std::string& r) { return std::ranges::find(before, r) != before.end(); };
    if (reasons.empty() || tries == kTries || std::ranges::any_of(reasons, stays)) return reasons;
    before = std::move(reasons);
  }
}

void PeerQuestions::check_there() {
  const std::vector<std::string> refusals = ask_twice([this](int tries) -> wire::Check& {
    if (tries > 1) take_stock();
    return inventory_.check;
  });
  Refusals all;
  for (const std::string& reason : refusals)
    all.ask([&] { throw Refusal("the destination cannot take " + label_ + ": " + reason, "nothing was touched"); });
  all.ask([&] { refuse_waiters(); });
  all.demand_none();
  // Most of what was written is on the disk before the tree stops, so that the rest is little.
  sync_files(inventory_.writable_files);
  events_.event("checks",
                "checked: " + std::to_string(inventory_.check.files_size()) + " files, " +
                    std::to_string(inventory_.check.ports_size()) + " ports, " +
                    std::to_string(inventory_.check.pids_size()) + " tasks",
                {{"files", int64_t{inventory_.check.files_size()}}, {"tasks", int64_t{inventory_.check.pids_size()}}});
  fault_point("source-agent.checked");
}

void PeerQuestions::refuse_waiters() const {
  std::vector<HeldLock> locks;
  for (const auto& file : inventory_.check.files()) {
    const auto device = file.locks_size() > 0 ? device_of(file.path()) : std::nullopt;
    if (device && shared_devices_.contains(*device))
      locks.push_back({0, target_, -1, {}, *device, file.inode(), file.path()});
  }
  // Who waits for a moment only has it by the second look.
  for (int looks = 0; !locks.empty() && looks < 2; ++looks) try {
      std::vector<Pid> tasks;
      for (const ProcDir& task : collect_tree(target_)) tasks.emplace_back(task.pid());
      return refuse_waiters_outside(locks, tasks);
    } catch (const Refusal&) {
      if (looks > 0) throw;
      ::usleep(100'000);
    }
}

void PeerQuestions::check_news() {
  Inventory news;
  const std::vector<std::string> refusals = ask_twice([&](int) -> wire::Check& {
    news = take_inventory(target_, InventoryDepth::whole, &inventory_);
    return news.check;
  });
  if (!refusals.empty()) refuse_news(refusals.front());
  extend_inventory(inventory_, news);
  // What was written meanwhile goes to the disk now, so that little is left when the tree is stopped.
  if (!synced_.valid() || synced_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
    if (synced_.valid()) synced_.get();
    synced_ = std::async(std::launch::async, [files = inventory_.writable_files] { sync_files(files); });
  }
}

void PeerQuestions::ask_about_securebits(const std::map<pid_t, uint32_t>& securebits) {
  wire::Check told;
  for (const auto& [pid, bits] : securebits) add_securebits(pid, bits, told);
  ask_about(told);
}

void PeerQuestions::ask_about_stop(std::span<const std::byte> images) {
  wire::Check told;
  add_securebits(decode_images(images), told);
  ask_about(told);
}

void PeerQuestions::ask_about(wire::Check& told) {
  static const wire::Check kNothing;
  leave_out_privileges(kNothing, told);
  const std::vector<std::string> refusals = ask(told);
  if (!refusals.empty())
    throw Refusal("the destination cannot take " + label_ + ": " + refusals.front(), "it runs on as before");
}

void PeerQuestions::begin_last_look() {
  news_ = std::async(std::launch::async, [this] {
    Inventory news = take_inventory(target_, InventoryDepth::quick, &inventory_);
    sync_files(inventory_.writable_files);
    sync_files(news.writable_files);
    return news;
  });
}

void PeerQuestions::end_last_look() {
  if (synced_.valid()) synced_.get();
  Inventory news = news_.get();
  const std::vector<std::string> refusals = ask(news.check);
  if (!refusals.empty()) refuse_news(refusals.front());
  extend_inventory(inventory_, news);
}

void PeerQuestions::refuse_news(const std::string& reason) const {
  throw Refusal("the destination cannot take what " + label_ + " opened meanwhile: " + reason,
                "try again when it has closed that");
}

}  // namespace migrate
