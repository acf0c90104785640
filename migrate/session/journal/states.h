// The states of a session's journal and the legal steps between them. This table is what keeps a program from being
// lost or doubled; migrate/session/README.md draws it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace migrate {

enum class Role { source, destination };

enum class State {
  preparing,  ///< source: the tree may be stopped, or be in our cgroup
  frozen,     ///< source: held in our cgroup, not committed
  committed,  ///< source: the destination may run it; frozen until the destination was asked
  receiving,  ///< destination: a copy is being built; it never runs in this state
  prepared,   ///< destination: complete behind its gate
  gate_open,  ///< destination: it runs (or is about to)
  whole,      ///< destination: it runs, and needs nothing of the source any more (post-copy)
  lost,       ///< pages that it still needed are gone with their last holder (post-copy)
  aborted,    ///< source: the tree runs on here; destination: the copy never ran and never will
  done,       ///< source: the tree was killed after the gate opened; destination: the source knows
};

/// On whose word a step is taken. Masks: a row of the table may allow several.
enum Authority : uint8_t {
  kOwn = 1,       ///< this side alone may decide it
  kPeer = 2,      ///< the other side's journal says so
  kOperator = 4,  ///< the operator typed the session id
  kTreeGone = 8,  ///< the tasks are dead, or the machine rebooted since
};

/// Whether a journal of `role` may go from `from` to `to` on that authority.
bool legal_step(Role role, State from, State to, Authority authority);
/// Nothing to settle any more.
bool is_final(State state);
/// First state of a journal.
State first_state(Role role);

std::string_view name_of(State state);
std::string_view name_of(Role role);
std::optional<State> state_named(std::string_view name);
std::optional<Role> role_named(std::string_view name);

}  // namespace migrate
