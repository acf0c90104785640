// Scripts that operators hook into the stages of a dump or restore (--action-script).
#pragma once

#include <string>
#include <vector>

#include "core/base/log.h"

namespace migrate::cli {

class ActionScripts {
 public:
  ActionScripts(std::vector<std::string> scripts, std::string images_dir, Logger& log);
  /// Runs all for `action` ("pre-dump", "post-restore", …) with CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and, if
  /// `root` is not 0, CRTOOLS_INIT_PID in the environment. Throws Error when one fails.
  void run(const std::string& action, int root = 0) const;

 private:
  std::vector<std::string> scripts_;
  std::string images_dir_;
  Logger& log_;
};

}  // namespace migrate::cli
