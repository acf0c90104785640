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
  state_ = open_path(gate.folders.front() + (v2_ ? "/cgroup.events" : "/freezer.state"), O_RDONLY);
  if (v2_) freeze_ = open_path(gate.folders.front() + "/cgroup.freeze", O_RDONLY);
}

GateWatch::Outcome GateWatch::wait() {
  for (;;) {
    std::array<char, 256> text;
    const ssize_t n = ::pread(state_.get(), text.data(), text.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Outcome::empty;  // ENODEV, or it could not be opened: the folder was removed
    const std::string_view told(text.data(), static_cast<size_t>(n));
    if (v2_ && told.find("populated 0") != std::string_view::npos) return Outcome::empty;
    const bool thawed = v2_ ? told.find("frozen 0") != std::string_view::npos : told.starts_with("THAWED");
    if (thawed && asked_to_be_open()) return Outcome::open;
    pollfd p{state_.get(), POLLPRI, 0};
    ::poll(&p, v2_ ? 1 : 0, v2_ && !thawed ? kRecheckMs : kNapMs);
  }
}

/// v2 says "frozen 0" also of a gate in which a task is not frozen yet, or is just leaving.
bool GateWatch::asked_to_be_open() const {
  if (!v2_) return true;
  char digit = '0';  // of a folder that is gone
  return ::pread(freeze_.get(), &digit, 1, 0) != 1 || digit == '0';
}

}  // namespace migrate
