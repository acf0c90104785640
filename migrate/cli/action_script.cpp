#include "migrate/cli/action_script.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "core/base/error.h"

namespace migrate::cli {

ActionScripts::ActionScripts(std::vector<std::string> scripts, std::string images_dir, Logger& log)
    : scripts_(std::move(scripts)), images_dir_(std::filesystem::absolute(images_dir)), log_(log) {}

void ActionScripts::run(const std::string& action, int root) const {
  for (const std::string& script : scripts_) {
    log_.info("action script {} for {}", script, action);
    std::vector<std::string> variables;
    for (char** e = environ; *e != nullptr; ++e) variables.emplace_back(*e);
    variables.push_back("CRTOOLS_SCRIPT_ACTION=" + action);
    variables.push_back("CRTOOLS_IMAGE_DIR=" + images_dir_);
    if (root != 0) variables.push_back("CRTOOLS_INIT_PID=" + std::to_string(root));
    std::vector<char*> env;
    for (std::string& v : variables) env.push_back(v.data());
    env.push_back(nullptr);
    std::string shell = "sh", dash_c = "-c", command = script;
    char* argv[] = {shell.data(), dash_c.data(), command.data(), nullptr};
    pid_t pid = 0;
    const int err = ::posix_spawn(&pid, "/bin/sh", nullptr, nullptr, argv, env.data());
    if (err != 0) throw Error("run action script", script, err);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0) {
      if (errno != EINTR) throw Error("wait for action script", script, errno);
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      throw Error("action script " + script + " failed for " + action + "; see its output");
  }
}

}  // namespace migrate::cli
