// A program on missing memory that a lazy host serves, in processes that a test kills.
#pragma once

#include <sys/resource.h>

#include <cstring>

#include "core/base/error.h"
#include "lazypages/lazy_host.h"
#include "tests/lazypages/lazy_program.h"

namespace migrate::lazy_testing {

/// What test and host tell each other.
struct HostTalk {
  std::array<std::atomic<pid_t>, 3> members{};
  std::array<std::atomic<unsigned>, 3> seats{};
  std::atomic<int> generations{0};
  std::atomic<bool> adopted{false}, leave{false}, poison{false};
  std::atomic<bool> fill{false};  ///< from the next that serves on
  std::atomic<bool> whole{false};
  std::atomic<int> wrong{0};        ///< of what one process told the next
  std::atomic<int> fails{0};        ///< generations that fail at once
  std::atomic<int> told_pace{0};    ///< sentences that say so
  std::atomic<int> descriptors{0};  ///< open in the latest that serves, when it began
  /// A step at which one process kills itself, and how many times it is passed before; nullptr: none.
  std::atomic<const char*> step{nullptr};
  std::atomic<int> passes{0};
  std::atomic<pid_t> dies{0};  ///< the last one that did, or is about to
  std::array<char, 256> said{};
};

inline int open_descriptors() { return static_cast<int>(numeric_entries(AT_FDCWD, "/proc/self/fd").size()); }

/// A lazy host that serves a program's memory, in processes that are not this one.
class HostedProgram {
 public:
  struct Options {
    Daemon::Options daemon;
    bool holders = true;
    std::chrono::milliseconds pace{0};
    unsigned burst = 20;
    const char* step = nullptr;  ///< at which the first that serves is killed
    int fails = 0;               ///< generations
    rlim_t descriptors = 0;      ///< limit; 0: as it is
  };
  HostedProgram(uint64_t pages, Options options, const LazyProgram::Body& body)
      : options_(options), talk_(share()), program_(pages, body) {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    talk_->step = options.step;
    talk_->fails = options.fails;
    LazyMemory memory = program_.register_memory();
    host_ = ::fork();
    if (host_ != 0) return;
    talk_->members[0] = ::getpid();
    const rlimit limit{options.descriptors, options.descriptors};
    if (limit.rlim_cur != 0) ::setrlimit(RLIMIT_NOFILE, &limit);
    try {
      options.holders ? hold(memory) : serve_alone(std::move(memory));
    } catch (const std::exception& e) {
      say(e.what());
    }
    ::_exit(9);
  }
  ~HostedProgram() {
    if (!gone_) kill_all();
    ::munmap(talk_, sizeof *talk_);
  }

  LazyProgram& program() { return program_; }
  HostTalk& talk() { return *talk_; }

  bool begins() {
    const Deadline deadline = Deadline::in(kPatience);
    while (!(talk_->adopted && (!options_.holders || complete())) && !deadline.passed()) ::usleep(100);
    program_.go();
    return talk_->adopted;
  }
  /// All members are there, and are not those that they were.
  bool complete() const {
    std::array<pid_t, 3> now{};
    for (size_t i = 0; i < 3; ++i) {
      now[i] = talk_->members[i];
      if (now[i] == 0 || now[i] == talk_->dies || ::kill(now[i], 0) != 0) return false;
      const auto task = open_pidfd(now[i]);
      pollfd ended{task ? task->get() : -1, POLLIN, 0};
      if (!task || ::poll(&ended, 1, 0) != 0) return false;
    }
    return now[0] != now[1] && now[0] != now[2] && now[1] != now[2];
  }
  /// The host gave the memory back and left; as long as nobody reaps its processes.
  bool leaves() const {
    const Deadline deadline = Deadline::in(kPatience);
    for (; !deadline.passed(); ::usleep(50)) {
      const auto left = [](const std::atomic<pid_t>& member) {
        const auto task = open_pidfd(member);
        pollfd ended{task ? task->get() : -1, POLLIN, 0};
        return !task || ::poll(&ended, 1, 0) == 1;
      };
      if (std::ranges::all_of(talk_->members, left)) return true;
    }
    return false;
  }
  bool becomes_complete() {
    const Deadline deadline = Deadline::in(kPatience);
    while (!complete() && !deadline.passed()) ::usleep(50);
    return complete();
  }
  void kill_member(size_t place) {
    const pid_t pid = talk_->members[place];
    const auto task = open_pidfd(pid);
    if (!task || talk_->members[place] != pid) return;
    ::syscall(SYS_pidfd_send_signal, task->get(), SIGKILL, nullptr, 0);
    pollfd gone{task->get(), POLLIN, 0};
    EXPECT_EQ(::poll(&gone, 1, static_cast<int>(kPatience.count())), 1);
  }
  /// All processes end by themselves, and none failed.
  bool ends() {
    const Deadline deadline = Deadline::in(kPatience);
    gone_ = true;
    for (;;) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
      if (pid < 0) return !failed_;
      if (pid > 0 && !(WIFEXITED(status) && WEXITSTATUS(status) == 0) &&
          !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
        failed_ = true;
      if (pid == 0 && deadline.passed()) return false;
      if (pid == 0) ::usleep(100);
    }
  }

 private:
  static HostTalk* share() {
    return new (::mmap(nullptr, sizeof(HostTalk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) HostTalk;
  }
  void say(std::string_view what) {
    if (what.find("again and again") != std::string_view::npos) ++talk_->told_pace;
    if (what.find(" goes on") == std::string_view::npos)
      std::snprintf(talk_->said.data(), talk_->said.size(), "%s", std::string(what).c_str());
  }
  void kill_all() {
    program_.talk().enough = true;
    if (program_.pid() > 0) ::kill(program_.pid(), SIGKILL);
    const Deadline deadline = Deadline::in(kPatience);
    while (!deadline.passed() && ::waitpid(-1, nullptr, WNOHANG | __WALL) >= 0)
      for (size_t place = 0; place < 3; ++place) kill_member(place);
  }
  [[noreturn]] void hold(LazyMemory& memory) {
    HoldOptions hold;
    const LazyMemory plain{memory.memory, {}, {}, memory.ranges, memory.missing};
    hold.kept["userfaultfd"] = std::move(memory.userfaultfd);
    hold.kept["process"] = std::move(memory.process);
    hold.placed = [this](unsigned place, unsigned seat) {
      talk_->seats.at(place) = seat;
      talk_->members.at(place) = ::getpid();
    };
    hold.say = [this](const std::string& sentence) { say(sentence); };
    hold.pace = options_.pace;
    hold.burst = options_.burst;
    hold.step = [this](const char* name) {
      const char* at = talk_->step;
      if (at == nullptr || std::string_view(at) != name || talk_->passes-- != 0) return;
      talk_->dies = ::getpid();
      talk_->step = nullptr;
      ::kill(::getpid(), SIGKILL);
    };
    hold_lazily(std::move(hold), [&](LazyHost& host) { serve(host, plain); });
  }
  void serve(LazyHost& host, const LazyMemory& plain) {
    const auto generation = static_cast<int>(host.generation());
    const bool full = options_.descriptors != 0;
    if (!full) talk_->descriptors = open_descriptors();
    talk_->generations = generation;
    if (generation < talk_->fails) throw Error("this one was told to fail");
    if (!full) hand_on(host, generation);
    options_.daemon.seed += host.generation();
    options_.daemon.fill = options_.daemon.fill || talk_->fill;
    Daemon daemon(program_, options_.daemon, [&](LazyMemories::Wanted wanted) {
      if (host.adopted()) return host.memories(std::move(wanted));
      const auto copy = [&](const char* name) { return Fd(::fcntl(host.kept(name), F_DUPFD_CLOEXEC, 0)); };
      std::vector<LazyMemory> memories;
      memories.push_back({plain.memory, copy("userfaultfd"), copy("process"), plain.ranges, plain.missing});
      return host.adopt(std::move(memories), std::move(wanted));
    });
    for (const char* name : {"userfaultfd", "process"}) host.drop(name);
    run(daemon, [&] { return host.alone(); });
  }
  /// Each leaves its number to the next, in a file and, after that, in many bytes.
  void hand_on(LazyHost& host, int generation) {
    const auto before = host.remembered();
    if (!before.empty()) {
      int kept = -1, remembered = -1;
      std::memcpy(&remembered, before.data(), sizeof remembered);
      for (size_t i = 0; i + sizeof kept <= before.size(); i += sizeof kept)
        if (std::memcmp(before.data(), before.data() + i, sizeof kept) != 0) ++talk_->wrong;
      if (before.size() != 60000 || ::pread(host.kept("number"), &kept, sizeof kept, 0) != sizeof kept ||
          kept < remembered || kept >= generation || remembered < 0)
        ++talk_->wrong;
    }
    Fd file(::memfd_create("number", MFD_CLOEXEC));
    pwrite_full(file.get(), std::as_bytes(std::span(&generation, 1)), 0, "a number");
    host.keep("number", std::move(file));
    const std::vector<int> many(15000, generation);
    host.remember(std::as_bytes(std::span(many)));
  }
  void serve_alone(LazyMemory memory) {
    Daemon daemon(program_, options_.daemon, [&](LazyMemories::Wanted wanted) {
      std::vector<LazyMemory> memories;
      memories.push_back(std::move(memory));
      return std::make_unique<LazyMemories>(std::move(memories), std::move(wanted));
    });
    run(daemon, [] { return false; });
  }
  void run(Daemon& daemon, const std::function<bool()>& alone) {
    talk_->adopted = true;
    bool again = false;
    for (; !talk_->poison && !again; ::usleep(200)) {
      talk_->whole = daemon.memories().whole();
      if (talk_->leave && talk_->whole) break;
      again = alone();
    }
    daemon.stop();
    if (again) return;
    talk_->poison ? daemon.memories().poison() : daemon.memories().finish();
  }

  Options options_;
  HostTalk* talk_;
  LazyProgram program_;
  pid_t host_ = 0;
  bool gone_ = false, failed_ = false;
};

}  // namespace migrate::lazy_testing
