// What fixed parts of the downtime took in earlier moves, kept for the estimates of later ones.
#pragma once

#include <string>

#include "migrate/policy/fixed_cost.h"

namespace migrate {

/// Factors of moves to `peer` (HOST:PORT as typed) from STATE_DIR/calibration.json; neutral ones if nothing is known or
/// the file cannot be read. They only steer estimates, so that no damage to the file can do more than make those worse.
Calibration load_calibration(const std::string& state_dir, const std::string& peer);
/// Best effort: a move does not fail for its statistics. The 100 peers written last are kept.
void save_calibration(const std::string& state_dir, const std::string& peer, const Calibration& calibration);

}  // namespace migrate
