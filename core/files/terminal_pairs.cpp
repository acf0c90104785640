#include "core/files/terminal_pairs.h"

#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "core/base/deadline.h"
#include "core/base/error.h"
#include "core/files/terminal_state.h"

namespace migrate {
namespace {

/// The kernel gives the lowest number that is free (devpts_new_index).
Fd new_master() {
  const int how = O_RDWR | O_NOCTTY | O_CLOEXEC;
  Fd master(::open("/dev/ptmx", how));
  if (!master) master = Fd(::open("/dev/pts/ptmx", how));
  return Fd(check(master.release(), "make a pseudo-terminal with", "/dev/ptmx"));
}

}  // namespace

void TerminalPairs::make(const std::set<uint32_t>& indices, std::chrono::milliseconds patience) {
  std::vector<Fd> between;  // hold the numbers below
  const Deadline deadline = Deadline::in(patience);
  for (const uint32_t wanted : indices) {
    if (pairs_.contains(wanted)) continue;
    for (;;) {
      Fd master = new_master();
      const uint32_t index = index_of_master(master.get(), "a new one");
      if (index > wanted && !deadline.passed()) {
        master.reset();
        ::usleep(5000);
        continue;
      }
      if (index > wanted)
        throw Refusal("the terminal " + slave_path(wanted) + " belongs to others here",
                      "end what runs in it, or move the tree by `migrate send`, which gives it terminals of its own");
      if (index < wanted) {
        between.push_back(std::move(master));
        continue;
      }
      lock_slave(master.get(), false, slave_path(wanted));
      pairs_[wanted].master = std::move(master);
      break;
    }
  }
}

int TerminalPairs::slave(uint32_t index) {
  Pair& pair = pairs_.at(index);
  if (!pair.slave) pair.slave = open_slave(pair.master.get(), O_RDWR, slave_path(index));
  return pair.slave.get();
}

Fd TerminalPairs::hung_up(uint32_t index, int flags) {
  TerminalPairs pairs;
  Fd other;
  int master = -1;
  try {
    pairs.make({index}, std::chrono::milliseconds(0));
    master = pairs.get(index).master.get();
  } catch (const Refusal&) {
    other = new_master();
    lock_slave(other.get(), false, "a new terminal");
    master = other.get();
  }
  return open_slave(master, flags, slave_path(index));
}

}  // namespace migrate
