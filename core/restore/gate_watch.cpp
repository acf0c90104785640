#include "core/restore/gate_watch.h"

#include <poll.h>

#include <array>
#include <string_view>

#include "core/base/error.h"

namespace migrate {
namespace {

constexpr int kNapMs = 10;        // freezer.state of v1 does not notify
constexpr int kRecheckMs = 1000;  // v2 notifies; this is for the removal of the folder

}  // namespace

GateWatch::GateWatch(const FreezerCgroup::Record& gate) : v2_(gate.v2) {
  if (gate.folders.empty()) throw Error("watch", "a gate that is dissolved", ENOENT);
  file_ = open_path(gate.folders.front() + (v2_ ? "/cgroup.events" : "/freezer.state"), O_RDONLY);
}

GateWatch::Outcome GateWatch::wait() {
  for (;;) {
    std::array<char, 256> text;
    const ssize_t n = ::pread(file_.get(), text.data(), text.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Outcome::empty;  // ENODEV: the folder was removed
    const std::string_view state(text.data(), static_cast<size_t>(n));
    if (v2_ && state.find("populated 0") != std::string_view::npos) return Outcome::empty;
    if (v2_ ? state.find("frozen 0") != std::string_view::npos : state.starts_with("THAWED")) return Outcome::open;
    pollfd p{file_.get(), POLLPRI, 0};
    ::poll(&p, v2_ ? 1 : 0, v2_ ? kRecheckMs : kNapMs);
  }
}

}  // namespace migrate
