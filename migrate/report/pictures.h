// The pictures of a report, as SVG elements.
#pragma once

#include <string>

#include "migrate/report/story.h"

namespace migrate {

/// Rounds as bars (width: time, height: bandwidth), what the program wrote, the estimate; all over one time axis.
/// Empty if nothing can be drawn.
std::string draw_time_line(const Story& story);
/// The downtime, split into its parts. Empty if it is not known.
std::string draw_downtime(const Story& story);

}  // namespace migrate
