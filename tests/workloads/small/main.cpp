// small DIR NAME: runs one small workload. small DIR NAME NAME...: runs each in a process and in a folder of its own,
// DIR/NAME; a check asks all, and its answer names those that failed: one move tests them all. small --list: names.
#include <sys/wait.h>

#include <algorithm>
#include <map>

#include "small.h"

namespace {

constexpr int kNotHere = 77;

const Small& find(const std::string& name) {
  for (const Small& one : all_small())
    if (one.name == name) return one;
  throw std::runtime_error("there is no small workload " + name);
}

/// Instead of READY.
[[noreturn]] void say_not_here(const Workload& w, const std::string& why) {
  const Place place(w.dir());
  const std::string status = place.path("status");
  put(place.open_file("status.new", O_WRONLY | O_CREAT | O_TRUNC, 0644), "SKIP " + why + "\n");
  must(rename((status + ".new").c_str(), status.c_str()), "rename");
  std::exit(kNotHere);
}

[[noreturn]] void be_one(int argc, char** argv) {
  Workload w(argc, argv);
  try {
    const Verify verify = find(argv[2]).set_up(Place(w.dir()));
    w.serve(verify, [] { sleep_ms(25); });
  } catch (const NotHere& e) {
    say_not_here(w, e.what());
  }
}

struct Member {
  Place place;
  pid_t pid;
  std::string ended;

  std::string said(const char* file) const {
    const std::string path = place.path(file);
    return access(path.c_str(), F_OK) == 0 ? text_of(path) : "";
  }
  /// How it has ended; "" if it lives.
  const std::string& end() {
    int status = 0;
    if (!ended.empty() || waitpid(pid, &status, WNOHANG) == 0) return ended;
    return ended = WIFSIGNALED(status) ? "was killed by signal " + std::to_string(WTERMSIG(status))
                                       : "ended with status " + std::to_string(WEXITSTATUS(status));
  }
};

using Members = std::map<std::string, Member>;

Member start(const std::string& program, const Place& place, const std::string& name) {
  const Place own(place.path(name));
  must(mkdir(own.dir().c_str(), 0777), "mkdir");
  must(chmod(own.dir().c_str(), 0777), "chmod");
  const pid_t pid = must(fork(), "fork");
  if (pid == 0) {
    execl(program.c_str(), program.c_str(), own.dir().c_str(), name.c_str(), nullptr);
    std::_Exit(127);
  }
  return {own, pid};
}

/// Waits until all are set up; those that cannot be here are named in the file `skipped`.
void await_ready(Members& members, const Place& place) {
  std::string skipped;
  for (auto it = members.begin(); it != members.end();) {
    Member& member = it->second;
    std::string end;
    await([&] { return !(end = member.end()).empty() || member.said("status").rfind("READY", 0) == 0; }, it->first);
    if (end.empty()) {
      ++it;
      continue;
    }
    const std::string status = member.said("status");
    if (status.rfind("SKIP ", 0) != 0) throw std::runtime_error(it->first + " " + end + " while it set up");
    skipped += it->first + ": " + status.substr(5);
    it = members.erase(it);
  }
  const int fd = place.open_file("skipped", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  put(fd, skipped);
  close(fd);
}

void ask(const Member& member, const std::string& token) {
  const int fd = member.place.open_file("check.new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  put(fd, token);
  close(fd);
  must(rename(member.place.path("check.new").c_str(), member.place.path("check").c_str()), "rename");
}

/// "" if it is well.
std::string answer(Member& member, const std::string& token) {
  std::string said, end;
  try {
    await([&] { return (said = member.said("result")).rfind(token + " ", 0) == 0 || !(end = member.end()).empty(); },
          "its answer");
  } catch (const std::exception& e) {
    return e.what();
  }
  if (!end.empty()) return end;
  said = said.substr(token.size() + 1, said.size() - token.size() - 2);
  return said == "PASS" ? "" : said.substr(5);
}

void check(Members& members, const std::string& token) {
  for (const auto& [_, member] : members) ask(member, token);
  std::string wrong;
  for (auto& [name, member] : members) {
    const std::string why = answer(member, token);
    if (why.empty()) continue;
    wrong += wrong.empty() ? "" : " | ";
    wrong.append(name).append(": ").append(why);
  }
  expect(wrong.empty(), wrong);
}

[[noreturn]] void be_bundle(int argc, char** argv) {
  Workload w(argc, argv);
  const Place place(w.dir());
  Members members;
  for (int i = 2; i < argc; ++i) members.emplace(argv[i], start(argv[0], place, argv[i]));
  await_ready(members, place);
  int asked = 0;
  w.serve([&] { check(members, std::to_string(++asked)); }, [] { sleep_ms(10); });
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        auto& all = all_small();
        std::sort(all.begin(), all.end(), [](const Small& a, const Small& b) { return a.name < b.name; });
        if (argc == 2 && std::string(argv[1]) == "--list") {
          for (const Small& one : all) std::printf("%s\n", one.name.c_str());
          return;
        }
        if (argc < 3) throw std::runtime_error("usage: small DIR NAME... | --list");
        if (argc == 3) be_one(argc, argv);
        be_bundle(argc, argv);
      },
      argc > 2 ? argv[2] : argv[0]);
}
