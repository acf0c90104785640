// Rules of the dirty tracker that a test can switch off one by one, to prove that it would notice.
#pragma once

namespace migrate {

struct TrackRules {
  bool new_is_written = true;       ///< else: a mapping that is not registered yet counts as known
  bool report_discards = true;      ///< else: what has gone is not told
  bool zeros_over_contents = true;  ///< else: a page of zeros is left out although the receiver has other contents
  bool send_written = true;         ///< else: in rounds, what was sent once counts as known for ever
  bool last_scan = true;            ///< else: the last round believes the round before
  bool new_memory = true;           ///< else: what was known of a memory counts for the next one of that number
  bool compare_at_end = true;  ///< else: of what is compared by content, that which was sent once is known for ever
  // Of soft-dirty bits only.
  bool stop_to_clear = true;     ///< else: the tree runs while the bits are read and cleared
  bool zero_page_is_new = true;  ///< else: the page of zeros counts as the page that was there before
  bool leave_mergeable = true;   ///< else: memory that KSM may merge is tracked
};

}  // namespace migrate
