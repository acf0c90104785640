#include "migrate/session/journal/states.h"

#include <array>
#include <utility>

namespace migrate {
namespace {

struct Step {
  Role role;
  State from, to;
  uint8_t authorities;
};

constexpr std::array kSteps = {
    Step{Role::source, State::preparing, State::frozen, kOwn},
    Step{Role::source, State::preparing, State::aborted, kOwn | kOperator | kTreeGone},
    Step{Role::source, State::frozen, State::aborted, kOwn | kOperator},
    // A tree that died with its machine while it was frozen can only go on at the destination.
    Step{Role::source, State::frozen, State::committed, kOwn | kTreeGone},
    Step{Role::source, State::committed, State::done, kPeer | kOperator},
    Step{Role::source, State::committed, State::aborted, kPeer | kOperator},
    Step{Role::destination, State::receiving, State::prepared, kOwn},
    Step{Role::destination, State::receiving, State::aborted, kOwn | kPeer | kOperator | kTreeGone},
    Step{Role::destination, State::prepared, State::gate_open, kPeer | kOperator},
    // Dead behind its gate: it never ran, and this tells the source so.
    Step{Role::destination, State::prepared, State::aborted, kPeer | kOperator | kTreeGone},
    Step{Role::destination, State::gate_open, State::done, kPeer | kOperator},
    // Post-copy: its own lazy-pages daemon knows when nothing is missing any more. Until then the source's tree has the
    // only copy of some pages; if that is gone, they are lost.
    Step{Role::destination, State::gate_open, State::whole, kOwn},
    Step{Role::destination, State::whole, State::done, kPeer | kOperator},
    Step{Role::destination, State::gate_open, State::lost, kPeer | kOperator | kTreeGone},
    Step{Role::source, State::committed, State::lost, kTreeGone | kOperator},
};

constexpr std::array kStates = {
    std::pair{State::preparing, "PREPARING"}, std::pair{State::frozen, "FROZEN"},
    std::pair{State::committed, "COMMITTED"}, std::pair{State::receiving, "RECEIVING"},
    std::pair{State::prepared, "PREPARED"},   std::pair{State::gate_open, "GATE_OPEN"},
    std::pair{State::aborted, "ABORTED"},     std::pair{State::done, "DONE"},
    std::pair{State::whole, "WHOLE"},         std::pair{State::lost, "LOST"},
};

}  // namespace

bool legal_step(Role role, State from, State to, Authority authority) {
  for (const Step& step : kSteps) {
    if (step.role == role && step.from == from && step.to == to) return (step.authorities & authority) != 0;
  }
  return false;
}

bool is_final(State state) { return state == State::aborted || state == State::done || state == State::lost; }

State first_state(Role role) { return role == Role::source ? State::preparing : State::receiving; }

std::string_view name_of(State state) {
  for (const auto& [value, name] : kStates) {
    if (value == state) return name;
  }
  return "?";
}

std::string_view name_of(Role role) { return role == Role::source ? "source" : "destination"; }

std::optional<State> state_named(std::string_view name) {
  for (const auto& [value, known] : kStates) {
    if (name == known) return value;
  }
  return std::nullopt;
}

std::optional<Role> role_named(std::string_view name) {
  if (name == "source") return Role::source;
  if (name == "destination") return Role::destination;
  return std::nullopt;
}

}  // namespace migrate
