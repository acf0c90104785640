// Rules of the dirty tracker that a test can switch off one by one, to prove that it would notice.
#pragma once

namespace migrate {

struct TrackRules {
  bool new_is_written = true;       ///< else: a mapping that is not registered yet counts as known
  bool report_discards = true;      ///< else: what has gone is not told
  bool zeros_over_contents = true;  ///< else: a page of zeros is left out although the receiver has other contents
  bool send_written = true;         ///< else: in rounds, what was sent once counts as known for ever
  bool last_scan = true;            ///< else: the last round believes the round before
};

}  // namespace migrate
