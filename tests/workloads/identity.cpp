// What a task says about itself: command line, environment, auxiliary vector, name, folders, umask, nice, scheduling,
// affinity, limits, personality, oom score, timer slack, child subreaper.
#include <sched.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "workload.h"

using namespace workload;

namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string read_link(const std::string& path) {
  char text[4096] = {};
  must(readlink(path.c_str(), text, sizeof text - 1), path.c_str());
  return text;
}

std::map<std::string, std::string> facts() {
  std::map<std::string, std::string> f;
  for (const char* name :
       {"cmdline", "environ", "auxv", "comm", "limits", "personality", "oom_score_adj", "coredump_filter"})
    f[name] = read_file(std::string("/proc/self/").append(name));
  for (const char* name : {"cwd", "root", "exe"}) f[name] = read_link(std::string("/proc/self/").append(name));
  const mode_t mask = umask(0);
  umask(mask);
  f["umask"] = std::to_string(mask);
  f["nice"] = std::to_string(getpriority(PRIO_PROCESS, 0));
  f["policy"] = std::to_string(sched_getscheduler(0));
  cpu_set_t set;
  must(sched_getaffinity(0, sizeof set, &set), "sched_getaffinity");
  f["affinity"] = std::to_string(CPU_COUNT(&set)) + (CPU_ISSET(0, &set) ? " with 0" : "");
  f["slack"] = std::to_string(prctl(PR_GET_TIMERSLACK));
  int subreaper = -1;
  prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
  f["subreaper"] = std::to_string(subreaper);
  f["tsc"] = std::to_string(getauxval(AT_PAGESZ)) + " " + std::to_string(getauxval(AT_SYSINFO_EHDR));
  f["thp"] = std::to_string(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
  f["pid"] = std::to_string(getpid()) + " " + std::to_string(getpgrp()) + " " + std::to_string(getsid(0));
  return f;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        must(prctl(PR_SET_NAME, "na me)(\n'x"), "PR_SET_NAME");
        must(chdir(w.dir().c_str()), "chdir");
        umask(0137);
        must(setpriority(PRIO_PROCESS, 0, 7), "setpriority");
        const sched_param zero{};
        must(sched_setscheduler(0, SCHED_BATCH, &zero), "sched_setscheduler");
        cpu_set_t first;
        CPU_ZERO(&first);
        CPU_SET(0, &first);
        must(sched_setaffinity(0, sizeof first, &first), "sched_setaffinity");
        const rlimit files{321, 4321}, core{0, 12345};
        must(setrlimit(RLIMIT_NOFILE, &files), "RLIMIT_NOFILE");
        rlimit old{};
        must(getrlimit(RLIMIT_CORE, &old), "RLIMIT_CORE");
        if (old.rlim_max >= core.rlim_max) must(setrlimit(RLIMIT_CORE, &core), "RLIMIT_CORE");
        must(personality(ADDR_NO_RANDOMIZE), "personality");
        must(prctl(PR_SET_TIMERSLACK, 123'456), "PR_SET_TIMERSLACK");
        must(prctl(PR_SET_CHILD_SUBREAPER, 1), "PR_SET_CHILD_SUBREAPER");
        must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "PR_SET_THP_DISABLE");
        std::ofstream("/proc/self/oom_score_adj") << "321\n";
        std::ofstream("/proc/self/coredump_filter") << "0x21\n";
        const auto before = facts();
        w.serve([&] {
          const auto now = facts();
          for (const auto& [name, value] : before)
            expect(now.at(name) == value,
                   std::string(name).append(" is [").append(now.at(name)).append("], was [").append(value));
        });
      },
      argv[0]);
}
