#include "migrate/session/lazy/lazy_host_main.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <span>
#include <vector>

#include "core/base/error.h"
#include "lazypages/lazy_host.h"
#include "migrate/session/base/session.h"
#include "migrate/session/journal/lazy_cgroups.h"
#include "migrate/session/lazy/lazy_server.h"
#include "migrate/session/lazy/lazy_settling.h"
#include "migrate/session/wire/link_words.h"

namespace migrate {
namespace {

/// Enters the cgroups of a seat. The descriptors are the host's; `here` is of the process, and goes with each copy.
class SeatCgroups {
 public:
  /// They are kept in `options`.
  SeatCgroups(const JournalEntry& entry, HoldOptions& options) {
    std::array<std::vector<Fd>, 3> seats = open_lazy_cgroups(entry);
    for (unsigned seat = 0; seat < seats.size(); ++seat)
      for (Fd& procs : seats[seat]) {
        procs_[seat].push_back(procs.get());
        options.kept.emplace("seat " + std::to_string(seat) + " " + std::to_string(procs.get()), std::move(procs));
      }
  }
  void enter(unsigned seat) {
    if (std::exchange(here_, seat) == seat) return;
    int trouble = 0;
    for (const int procs : procs_.at(seat))
      if (::write(procs, "0", 1) != 1 && trouble == 0) trouble = errno;
    if (trouble != 0) throw Error("enter", "a cgroup of the lazy host", trouble);
  }

 private:
  std::array<std::vector<int>, 3> procs_;
  std::optional<unsigned> here_;
};

}  // namespace

int run_lazy_host(int argc, char** argv, Logger& log) {
  constexpr int kGuardianFd = 3, kListenerFd = 4;
  if (argc < 5) return kRefused;
  const std::optional<SessionId> id = session_from_hex(argv[3]);
  if (!id) return kRefused;
  LazyServerOptions settings{.session = *id,
                             .peer_name = argv[4],
                             .link = link_from_words(std::span(argv, static_cast<size_t>(argc)).subspan(5)),
                             .timeouts = with_test_timeouts({})};
  HoldOptions options;
  options.say = [&log](const std::string& sentence) { log.warn("{}", sentence); };
  options.kept.emplace("listener", Fd(kListenerFd));
  options.kept.emplace("guardian", Fd(kGuardianFd));
  // Written by the guardian before it started us.
  const std::optional<JournalEntry> entry = JournalStore(argv[2]).peek(*id, Role::destination);
  if (!entry) return kRefused;
  SeatCgroups cgroups(*entry, options);
  options.placed = [&cgroups](unsigned /*place*/, unsigned seat) { cgroups.enter(seat); };
  const std::string state_dir = argv[2];
  settings.path = state_dir + "/" + to_hex(*id) + ".lazy";
  settings.settle_alone = [&](const PagesEnd& end) {
    if (::access(state_dir.c_str(), F_OK) != 0 && errno == ENOENT) return true;  // JournalStore would make it
    JournalStore store(state_dir);
    return settle_without_guardian(store, *cgroup_keeper(log), *id, end);
  };
  hold_lazily(std::move(options), [&](LazyHost& host) { LazyServer(host, settings, log).run(); });
}

}  // namespace migrate
