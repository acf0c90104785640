#include "migrate/session/telling/fault.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr auto kPoints = std::to_array<std::string_view>({
    // Between the rename of a journal that says this, and the sync of its folder.
    "source-journal.preparing",
    "source-journal.frozen",
    "source-journal.committed",
    "source-journal.aborted",
    "source-journal.lost",
    "source-journal.done",
    "destination-journal.receiving",
    "destination-journal.prepared",
    "destination-journal.gate-open",
    "destination-journal.aborted",
    "destination-journal.whole",
    "destination-journal.lost",
    "destination-journal.done",
    "source-agent.connected",
    "source-agent.checked",
    "source-agent.begun",
    // Stages of the visits of dirty tracking, in their order (core/inject/userfaultfd_visit.h), and what follows.
    "source-agent.inject-slot-written",
    "source-agent.inject-registers-borrowed",
    "source-agent.inject-signals-blocked",
    "source-agent.inject-at-the-entry-of-prctl",
    "source-agent.inject-asked-for-the-securebits",
    "source-agent.inject-at-the-entry-of-kcmp",
    "source-agent.inject-looked-at-the-witness",
    "source-agent.inject-at-the-entry-of-mmap",
    "source-agent.inject-mapped",
    "source-agent.inject-area-opened",
    "source-agent.inject-registers-at-the-parasite",
    "source-agent.inject-parasite-running",
    "source-agent.inject-parasite-done",
    "source-agent.inject-userfaultfd-taken",
    "source-agent.inject-userfaultfd-closed",
    "source-agent.inject-leader-stopped",
    "source-agent.inject-leader-at-its-way-out",
    "source-agent.inject-at-the-entry-of-munmap",
    "source-agent.inject-unmapped",
    "source-agent.inject-leader-in-an-event-stop",
    "source-agent.inject-mask-given-back",
    "source-agent.inject-leader-cured",
    "source-agent.inject-slots-cleared",
    "source-agent.inject-mapping-registered",
    "source-agent.scanned",
    "source-agent.round-sent",
    "source-agent.reserved",
    "source-agent.frozen",
    "source-agent.images-sent",
    "source-agent.pages-sent",
    "source-agent.ready",
    "source-agent.committed",
    "source-agent.commit-sent",
    "source-agent.gate-open",
    "source-agent.feeding",
    "source-agent.whole",
    "source-agent.killed",
    "source-agent.reporting",
    "source-guardian.started",
    // Stages of a parasite visit, in their order (core/inject/visit.cpp).
    "source-guardian.inject-slot-written",
    "source-guardian.inject-registers-borrowed",
    "source-guardian.inject-signals-blocked",
    "source-guardian.inject-at-the-entry-of-prctl",
    "source-guardian.inject-asked-for-the-securebits",
    "source-guardian.inject-at-the-entry-of-kcmp",
    "source-guardian.inject-looked-at-the-witness",
    "source-guardian.inject-at-the-entry-of-mmap",
    "source-guardian.inject-mapped",
    "source-guardian.inject-area-opened",
    "source-guardian.inject-at-the-entry-of-flock",
    "source-guardian.inject-at-the-entry-of-fcntl",
    "source-guardian.inject-registers-at-the-parasite",
    "source-guardian.inject-parasite-running",
    "source-guardian.inject-parasite-done",
    "source-guardian.inject-thread-slot-written",
    "source-guardian.inject-thread-registers-borrowed",
    "source-guardian.inject-thread-signals-blocked",
    "source-guardian.inject-thread-running",
    "source-guardian.inject-thread-done",
    "source-guardian.inject-thread-stopped",
    "source-guardian.inject-mask-given-back",
    "source-guardian.inject-thread-cured",
    "source-guardian.inject-leader-stopped",
    "source-guardian.inject-leader-at-its-way-out",
    "source-guardian.inject-at-the-entry-of-munmap",
    "source-guardian.inject-unmapped",
    "source-guardian.inject-leader-in-an-event-stop",
    "source-guardian.inject-leader-cured",
    "source-guardian.inject-slots-cleared",
    "source-guardian.stopped",
    "source-guardian.locks-given-up",
    "source-guardian.held",
    "source-guardian.frozen",
    "source-guardian.before-commit",
    "source-guardian.committed",
    "source-guardian.before-kill",
    "source-guardian.killed",
    "destination-agent.begun",
    "destination-agent.layout-received",
    "destination-agent.reserved",
    "destination-agent.round-received",
    "destination-agent.images-received",
    "destination-agent.prepared-shells",
    "destination-agent.pages-received",
    "destination-agent.prepared",
    "destination-agent.ready-sent",
    "destination-agent.commit-received",
    "destination-agent.gate-open",
    "destination-agent.feed-let-in",
    "destination-agent.whole",
    "destination-guardian.started",
    "destination-guardian.warm",
    "destination-guardian.reserved",
    "destination-guardian.shells",
    "destination-guardian.finished",
    "destination-guardian.lazily-held",
    "destination-guardian.whole",
    "destination-guardian.prepared",
    "destination-guardian.gate-journaled",
    "destination-guardian.gate-open",
});

std::string_view action_for(std::string_view name) {
  const char* env = ::getenv("MIGRATE_FAULT");
  std::string_view rest = env != nullptr ? env : "";
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    const size_t colon = one.find(':');
    if (colon != std::string_view::npos && one.substr(0, colon) == name) return one.substr(colon + 1);
  }
  return {};
}

void expect_known(std::string_view name) {
  if (std::find(kPoints.begin(), kPoints.end(), name) == kPoints.end()) throw std::logic_error(std::string(name));
}

/// For the test: a point that was not reached proves nothing.
void note_reached(std::string_view name) {
  const char* path = ::getenv("MIGRATE_FAULT_REACHED");
  if (path == nullptr) return;
  const int fd = ::open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return;
  const std::string line = std::string(name) + "\n";
  if (::write(fd, line.data(), line.size()) < 0) ::perror("the reached fault point");
  ::close(fd);
}

}  // namespace

std::span<const std::string_view> fault_points() { return kPoints; }

bool fault_asked(std::string_view name, std::string_view action) {
  expect_known(name);
  if (action_for(name) != action) return false;
  note_reached(name);
  return true;
}

void fault_point(std::string_view name) {
  expect_known(name);
  const std::string_view action = action_for(name);
  if (action.empty()) return;
  note_reached(name);
  if (action == "kill-self") ::kill(::getpid(), SIGKILL);
  if (action == "stop-self") {
    ::unsetenv("MIGRATE_FAULT");  // once: whoever continues us waits for no second stop, in a loop say
    ::kill(::getpid(), SIGSTOP);
  }
  if (action == "fail") throw Error("reach", name, EIO);
  if (action == "sleep") {
    const timespec five{5, 0};
    ::nanosleep(&five, nullptr);
  }
}

std::function<void(const char*)> visit_fault_hook(const std::string& who) {
  const std::string prefix = who + ".inject-";
  const char* env = ::getenv("MIGRATE_FAULT");
  if (env == nullptr || std::string_view(env).find(prefix) == std::string_view::npos) return {};
  return [prefix](const char* stage) {
    std::string name = prefix + stage;
    std::replace(name.begin(), name.end(), ' ', '-');
    // What only programs with PR_SET_MDWE pass has no point, and nothing may throw here.
    if (std::ranges::find(kPoints, name) != kPoints.end()) fault_point(name);
  };
}

}  // namespace migrate
