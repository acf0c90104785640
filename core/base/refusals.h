// Several checks of one thing: whoever is refused learns all that is in the way, not one thing a try.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace migrate {

/// The first of some refusals, and the others.
class AllRefusals : public Refusal {
 public:
  /// At least one.
  explicit AllRefusals(std::vector<Refusal> all) : Refusal(all.front()), others_(all.begin() + 1, all.end()) {}
  const std::vector<Refusal>& others() const { return others_; }

 private:
  std::vector<Refusal> others_;
};

class Refusals {
 public:
  /// Runs a check; what it refuses is kept. Other exceptions pass if nothing was refused before; so do refusals once
  /// there are many.
  template <class Check>
  void ask(Check&& check) {
    try {
      std::forward<Check>(check)();
    } catch (const AllRefusals& e) {
      add(e);
      for (const Refusal& other : e.others()) add(other);
    } catch (const Refusal& e) {
      add(e);
    } catch (const Error&) {
      demand_none();
      throw;
    }
    if (all_.size() >= kMany) demand_none();
  }
  /// Throws AllRefusals if there are any.
  void demand_none() const {
    if (!all_.empty()) throw AllRefusals(all_);
  }

 private:
  static constexpr size_t kMany = 20;

  void add(const Refusal& refusal) {
    const auto same = [&](const Refusal& known) { return std::strcmp(known.what(), refusal.what()) == 0; };
    if (std::ranges::none_of(all_, same)) all_.push_back(refusal);
  }

  std::vector<Refusal> all_;
};

}  // namespace migrate
