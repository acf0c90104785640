// `--report FILE.html`: one self-contained page with a picture of a migration's time line, drawn from its events.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace migrate {

using ReportValue = std::variant<int64_t, double, bool, std::string>;
using ReportFields = std::vector<std::pair<std::string, ReportValue>>;

struct ReportEvent {
  std::string name, sentence;
  ReportFields fields;
  double time = 0;  ///< seconds, of any clock
};

/// Keeps events in memory (at most 10,000; of progress events those of a feed, thinned out when they are many) and
/// draws them. Names and fields are those of migrate/session/README.md, "Events"; what is unknown or missing is left
/// out of the picture. Everything that is written is escaped: sentences carry names that others chose. Not for several
/// threads at a time.
class Report {
 public:
  void add(std::string_view name, const std::string& sentence, const ReportFields& fields, double time);
  /// A line that `--json` wrote; false if it is none.
  bool add_json(std::string_view line);
  /// The page; it is also well-formed XML.
  std::string html() const;
  /// Throws Error naming `path`. May be called early (to see that the file can be written) and again at the end.
  void write(const std::string& path) const;

 private:
  void add_sample(ReportEvent event);

  std::vector<ReportEvent> events_;
  std::vector<ReportEvent> samples_;  ///< of a feed
  size_t samples_seen_ = 0, every_ = 1;
};

}  // namespace migrate
