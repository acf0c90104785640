// Descriptor tables as a whole: sharing, refusals, size, damaged images.
#include "failing_calls.h"
#include "files_testing.h"

#include <linux/netlink.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <random>

#include "core/base/refusals.h"

namespace migrate::files_testing {
namespace {

TEST_F(Files, WhatWasRestoredCanBeDumpedAgain) {
  const uint16_t port = free_port(SOCK_STREAM);
  auto images = dump([&] {
    place_at(::open(at("a").c_str(), O_RDWR | O_CREAT, 0644), 3);
    int p[2];
    MUST(::pipe(p) == 0 && ::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    say(p[0], "queued");
    place_at(unix_at(at("server"), SOCK_STREAM, false), 10);
    MUST(::listen(10, 7) == 0);
    place_at(unix_at(at("server"), SOCK_STREAM, true), 11);
    place_at(::accept(10, nullptr, nullptr), 12);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 13);
    MUST(bind_to(13, port) == 0 && ::listen(13, 5) == 0);
    place_at(::epoll_create1(0), 14);
    epoll_event e{};
    e.events = EPOLLIN;
    for (const int fd : {10, 11, 12, 13}) MUST(::epoll_ctl(14, EPOLL_CTL_ADD, fd, &e) == 0);
    place_at(::open(at("ghost").c_str(), O_RDWR | O_CREAT, 0644), 15);
    say(15, "boo");
    ::unlink(at("ghost").c_str());
  });
  const auto shape = [](const ImageSet& set) {
    std::map<std::string, size_t> sizes;
    for (const auto& [name, bytes] : set.images()) sizes[name] = bytes.size();
    sizes.erase("files.img");  // inode numbers vary in length
    return sizes;
  };
  const auto before = shape(images);
  for (int round = 0; round < 3; ++round) {
    auto restorer = std::make_unique<FileRestorer>(images, FileRestoreOptions{}, *log);
    restorer->open_all();
    const pid_t us = ::getpid();
    Child shell([&] {
      Fd pidfd = std::move(*open_pidfd(us));
      const int high = check(::fcntl(pidfd.get(), F_DUPFD, 950), "keep", "a pidfd");
      ::close(kReport);
      pidfd.reset();
      install_descriptors(images, 1, high, restorer->opened(), {}, *log);
      ::close(high);
    });
    ASSERT_TRUE(shell.stopped());
    EXPECT_EQ(restorer->after_gate(), std::vector<std::string>());
    restorer.reset();
    images = dump_tasks({shell.pid()});
    EXPECT_EQ(shape(images), before);
  }
}

TEST_F(Files, TasksShareTablesAndDescriptions) {
  const auto start = [&](const std::string& file, bool share) {
    return [=] {
      place_at(::open(file.c_str(), O_RDWR | O_CREAT, 0600), 3);
      place_at(::epoll_create1(0), 4);
      place_at(::eventfd(0, 0), 5);
      epoll_event e{};
      e.events = EPOLLIN;
      MUST(::epoll_ctl(4, EPOLL_CTL_ADD, 5, &e) == 0);
      ::close(kReport);
      const long child = ::syscall(SYS_clone, SIGCHLD | (share ? CLONE_FILES : 0), nullptr, nullptr, nullptr, nullptr);
      MUST(child >= 0);
      if (child == 0)
        for (;;) ::pause();
      // Told by its name, since no descriptor may be left for it.
      MUST(::rename(file.c_str(), (file + "." + std::to_string(child)).c_str()) == 0);
    };
  };
  for (const bool share : {false, true}) {
    Child child(start(at("shared"), share));
    ASSERT_TRUE(child.stopped()) << child.text();
    const std::string name = std::filesystem::directory_iterator(dir)->path();
    const auto second = static_cast<pid_t>(std::stol(name.substr(name.rfind('.') + 1)));
    ImageSet images;
    std::vector<StoppedTask> tasks;
    tasks.push_back(task_of(child.pid()));
    tasks.push_back(task_of(second));
    FileDumper dumper(tasks, {}, images, *log);
    dumper.dump_descriptors();
    dumper.finish();
    EXPECT_EQ(dumper.files_id(Pid(child.pid())) == dumper.files_id(Pid(second)), share);
    EXPECT_EQ(table_ids(images).size(), share ? 1U : 2U);
    EXPECT_EQ(read_file_entries(images).size(), 3U);
    restore(images, [] {
      const uint64_t one = 1;
      MUST(::write(5, &one, 8) == 8);
      epoll_event e{};
      MUST(::epoll_wait(4, &e, 1, 5000) == 1);
    });
    ::kill(second, SIGKILL);
    std::filesystem::remove(name);
  }
}

TEST_F(Files, RefusalsNameTheDescriptor) {
  refused([] { place_at(::fanotify_init(FAN_CLASS_NOTIF, O_RDONLY), 7); }, "has fd 7, a fanotify group");
  refused([] { place_at(::socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC), 7); }, "a netlink socket of protocol 16");
  refused([] { place_at(::open("/proc/self/ns/net", O_RDONLY), 7); }, "network namespace");
  refused(
      [&] {
        place_at(::open(at("locked").c_str(), O_RDWR | O_CREAT, 0600), 7);
        MUST(::flock(7, LOCK_EX) == 0);
      },
      "with a lock");
}

TEST_F(Files, PreflightRefusesWithoutStopping) {
  Child child([] { place_at(::fanotify_init(FAN_CLASS_NOTIF, O_RDONLY), 7); });
  ASSERT_TRUE(child.stopped());
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child.pid());
  EXPECT_THROW(FileDumper::preflight(tasks, {}, *log), Refusal);
}

TEST_F(Files, PreflightNamesWhoHasAPathThatIsTooLong) {
  Child child([&] {
    const std::string name(200, 'd');
    MUST(::chdir(at("").c_str()) == 0);
    for (size_t length = 0; length < PATH_MAX; length += name.size() + 1)
      MUST(::mkdir(name.c_str(), 0700) == 0 && ::chdir(name.c_str()) == 0);
    place_at(::open("f", O_RDWR | O_CREAT, 0600), 7);
  });
  ASSERT_TRUE(child.stopped());
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child.pid());
  try {
    FileDumper::preflight(tasks, {}, *log);
    ADD_FAILURE() << "not refused";
  } catch (const Refusal& e) {
    EXPECT_NE(std::string(e.what()).find("fd/7 a file whose path is longer than 4095 bytes"), std::string::npos)
        << e.what();
  }
}

TEST_F(Files, PreflightPassesOverWhatIsForAMoment) {
  // Each loop has something that no dump takes half of the time, and never for long.
  const auto passes = [&](const std::function<void()>& once) {
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t busy = ::fork();
    if (busy == 0) {
      MUST(::dup2(ready[1], 0) == 0 && ::close_range(1, ~0u, 0) == 0);
      for (const pid_t parent = ::getppid(); ::getppid() == parent;) {
        once();
        if (::write(0, "", 1) < 0) ::_exit(1);
      }
      ::_exit(0);
    }
    ::close(ready[1]);
    std::vector<char> some(1 << 16);
    const auto rounds = [&] { return ::read(ready[0], some.data(), some.size()); };
    ASSERT_GT(rounds(), 0);
    std::vector<ProcDir> tasks;
    tasks.emplace_back(busy);
    for (int i = 0; i < 20; ++i) {
      EXPECT_NO_THROW(FileDumper::preflight(tasks, {}, *log));
      ASSERT_GT(rounds(), 0);
    }
    ::kill(busy, SIGKILL);
    ::waitpid(busy, nullptr, 0);
    ::close(ready[0]);
  };
  constexpr timespec kMoment{0, 2'000'000};
  passes([&] {
    const int epoll = ::epoll_create1(0), watched = ::eventfd(0, 0);
    epoll_event e{.events = EPOLLIN, .data = {}};
    MUST(::epoll_ctl(epoll, EPOLL_CTL_ADD, watched, &e) == 0);
    const int copy = ::dup(watched);
    ::close(watched);
    ::nanosleep(&kMoment, nullptr);
    for (const int fd : {copy, epoll}) ::close(fd);
    ::nanosleep(&kMoment, nullptr);
  });
  passes([&] {
    const int listening = ::socket(AF_UNIX, SOCK_STREAM, 0), client = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un name{AF_UNIX, ""};
    socklen_t length = sizeof(sa_family_t);
    MUST(::bind(listening, reinterpret_cast<sockaddr*>(&name), length) == 0 && ::listen(listening, 5) == 0);
    length = sizeof name;
    MUST(::getsockname(listening, reinterpret_cast<sockaddr*>(&name), &length) == 0);
    MUST(::connect(client, reinterpret_cast<sockaddr*>(&name), length) == 0);
    ::nanosleep(&kMoment, nullptr);
    const int accepted = ::accept(listening, nullptr, nullptr);
    for (const int fd : {accepted, client, listening}) ::close(fd);
  });
}

TEST_F(Files, PreflightTellsAllThatIsInTheWay) {
  Child child([] {
    place_at(::fanotify_init(FAN_CLASS_NOTIF, O_RDONLY), 7);
    place_at(::socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC), 9);
  });
  ASSERT_TRUE(child.stopped());
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child.pid());
  try {
    FileDumper::preflight(tasks, {}, *log);
    ADD_FAILURE() << "it was taken";
  } catch (const AllRefusals& e) {
    EXPECT_NE(std::string(e.what()).find("fd 7"), std::string::npos) << e.what();
    ASSERT_EQ(e.others().size(), 1u);
    EXPECT_NE(std::string(e.others().front().what()).find("fd 9"), std::string::npos) << e.others().front().what();
  }
}

/// Of a descriptor that could not be got nobody knows whether it can be moved; one that was closed has no say.
TEST_F(Files, PreflightTellsWhatItCannotSee) {
  Child child([] { place_at(::socket(AF_INET, SOCK_DGRAM, 0), 7); });
  ASSERT_TRUE(child.stopped());
  std::vector<ProcDir> tasks;
  tasks.emplace_back(child.pid());
  FileDumper::preflight(tasks, {}, *log);
  const auto without = [&](int err) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      let_fail(SYS_pidfd_getfd, static_cast<unsigned>(err));
      try {
        FileDumper::preflight(tasks, {}, *log);
      } catch (const Error& e) {
        ::_exit(e.code() == err ? 1 : 2);
      }
      ::_exit(0);
    }
    int status = 0;
    check(::waitpid(pid, &status, 0), "wait for", "a child");
    return WEXITSTATUS(status);
  };
  EXPECT_EQ(without(EMFILE), 1);
  EXPECT_EQ(without(EBADF), 0);
  EXPECT_EQ(without(ESRCH), 0);
}

TEST_F(Files, PreflightFindsWhoIsOutside) {
  const auto refusal = [&](pid_t pid, FileDumpOptions options) -> std::string {
    options.advice = Advice::all;
    std::vector<ProcDir> tasks;
    tasks.emplace_back(pid);
    try {
      FileDumper::preflight(tasks, options, *log);
    } catch (const Refusal& e) {
      return e.what();
    }
    return "";
  };
  int pipe_ends[2], pair[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const auto only = [us = ::getpid()](int fd) {
    place_at(get_remote_fd(open_pidfd(us)->get(), fd).release(), 5);
    ::close(kReport);
  };
  Child reader([&] { only(pipe_ends[0]); });
  Child writer([&] { only(pipe_ends[1]); });
  Child left([&] { only(pair[0]); });
  Child right([&] { only(pair[1]); });
  Child ghost([&] {
    ::close(kReport);
    place_at(::open(at("").c_str(), O_TMPFILE | O_RDWR, 0600), 3);
    say(3, std::string(8192, 'x'));
  });
  for (Child* c : {&reader, &writer, &left, &right, &ghost}) ASSERT_TRUE(c->stopped());
  for (const int fd : {pipe_ends[0], pipe_ends[1], pair[0], pair[1]}) ::close(fd);
  EXPECT_NE(refusal(reader.pid(), {}).find("is held by process " + std::to_string(writer.pid())), std::string::npos);
  EXPECT_NE(refusal(left.pid(), {}).find("connected to process " + std::to_string(right.pid())), std::string::npos);
  EXPECT_NE(refusal(ghost.pid(), {{.ghost_limit = 4096}}).find("raise --ghost-limit"), std::string::npos);
  EXPECT_EQ(refusal(ghost.pid(), {}), "");
}

TEST_F(Files, FiveThousandDescriptors) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  constexpr int kFirst = 1000, kFiles = 4000, kCopies = 1000;
  if (limit.rlim_max < kFirst + kFiles + kCopies) GTEST_SKIP() << "needs a hard limit of 6000 open files (ulimit -Hn)";
  const auto images = dump([&] {
    limit.rlim_cur = limit.rlim_max;
    MUST(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; i < kFiles; ++i) place_at(i % 2 != 0 ? ::eventfd(0, 0) : ::open("/dev/null", O_RDWR), kFirst + i);
    for (int i = 0; i < kCopies; ++i) MUST(::dup2(kFirst + i, kFirst + kFiles + i) >= 0);
  });
  EXPECT_EQ(read_table(images, 1).size(), 5000U);
  EXPECT_EQ(read_file_entries(images).size(), 4000U);
  restore(images, [] {
    const uint64_t seven = 7;
    MUST(::write(1001, &seven, 8) == 8);
    uint64_t n = 0;
    MUST(::read(5001, &n, 8) == 8 && n == 7);
    MUST(link_of(5000) == "/dev/null");
  });
}

/// Damaged images end in exceptions. Runs in a child, since a file the images name may be opened.
TEST_F(Files, DamagedImagesThrow) {
  const auto good = dump([&] {
    place_at(::open(at("a").c_str(), O_RDWR | O_CREAT, 0644), 3);
    int p[2];
    MUST(::pipe(p) == 0 && ::socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    place_at(::eventfd(1, 0), 20);
    place_at(::memfd_create("m", 0), 21);
    place_at(unix_at(at("sock"), SOCK_DGRAM, false), 22);
    place_at(::socket(AF_INET, SOCK_STREAM, 0), 23);
  });
  std::filesystem::remove(at("sock"));
  const auto open_files = [] {
    const auto all = std::filesystem::directory_iterator("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const auto before = open_files();
  int refused = 0;
  std::mt19937 random(1);
  for (int round = 0; round < 1500; ++round) {
    ImageSet bad;
    auto victim = random() % good.images().size();
    for (const auto& [name, bytes] : good.images()) {
      auto copy = bytes;
      if (victim-- == 0 && copy.size() > 8)
        for (unsigned n = 1 + random() % 3; n > 0; --n)
          copy[8 + random() % (copy.size() - 8)] = static_cast<std::byte>(random());
      bad.adopt(name, std::move(copy));
    }
    try {
      FileRestorer restorer(bad, {}, *log);
      restorer.open_all();
    } catch (const Error& e) {
      EXPECT_FALSE(std::string(e.what()).empty());
      ++refused;
    }
  }
  EXPECT_GT(refused, 300) << "hardly any damage was noticed";
  EXPECT_EQ(open_files(), before) << "what was opened for damaged images stays open";
}

}  // namespace
}  // namespace migrate::files_testing
