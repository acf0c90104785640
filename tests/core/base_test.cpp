#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "core/base/fd.h"
#include "core/base/features.h"
#include "core/base/looked_at.h"
#include "core/base/procfs.h"
#include "core/base/refusals.h"
#include "core/base/standby.h"
#include "failing_calls.h"

namespace migrate {
namespace {

TEST(Stat, CommandNameMayHoldAnything) {
  std::string text = "42 (a) b\n(c)) S 1 42 42 0 -1 4194304";
  for (int field = 10; field <= 52; ++field) text += " " + std::to_string(field);
  const ProcStat s = parse_stat(text);
  EXPECT_EQ(s.comm, "a) b\n(c)");
  EXPECT_EQ(s.state, 'S');
  EXPECT_EQ(s.ppid, 1);
  EXPECT_EQ(s.start_time, 22u);
  EXPECT_EQ(s.env_end, 51u);
  EXPECT_EQ(s.exit_code, 52);
}

TEST(Stat, DamagedTextIsRefused) {
  EXPECT_THROW(parse_stat(""), Corrupt);
  EXPECT_THROW(parse_stat("1 )x("), Corrupt);
  EXPECT_THROW(parse_stat("1 (x) S 1 2 3"), Corrupt);
}

TEST(ProcDir, ReadsItself) {
  const ProcDir self(::getpid());
  EXPECT_EQ(self.stat().ppid, ::getppid());
  EXPECT_EQ(self.threads().front(), ::getpid());
  EXPECT_EQ(self.status().at("Tgid"), std::to_string(::getpid()));
}

/// Nothing but errno tells a failure of readdir(3) from the end.
TEST(ProcDir, AFolderThatCannotBeReadIsNotAnEmptyOne) {
  EXPECT_FALSE(numeric_entries(AT_FDCWD, "/proc/self/fd").empty());
  const std::string empty = testing::TempDir() + "migrate-empty-" + std::to_string(::getpid());
  ASSERT_EQ(::mkdir(empty.c_str(), 0700), 0);
  EXPECT_TRUE(numeric_entries(AT_FDCWD, empty).empty());
  ::rmdir(empty.c_str());
  const pid_t child = ::fork();
  if (child == 0) {
    let_fail(SYS_getdents64, EIO);
    try {
      numeric_entries(AT_FDCWD, "/proc/self/fd");
    } catch (const Error& e) {
      ::_exit(e.code() == EIO ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(Fds, AFileIsNotGoneBecauseWeHaveNoDescriptors) {
  EXPECT_TRUE(open_regular("/proc/self/exe", O_RDONLY));
  EXPECT_FALSE(open_regular("/nowhere", O_RDONLY));
  EXPECT_FALSE(open_regular("/", O_RDONLY));
  const pid_t child = ::fork();
  if (child == 0) {
    let_fail(SYS_openat, EMFILE);
    try {
      open_regular("/proc/self/exe", O_RDONLY);
    } catch (const Error& e) {
      ::_exit(e.code() == EMFILE ? 0 : 2);
    }
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(Errors, AllRefusalsAreToldEachOnce) {
  Refusals refusals;
  EXPECT_NO_THROW(refusals.demand_none());
  refusals.ask([] {});
  EXPECT_NO_THROW(refusals.demand_none());
  EXPECT_THROW(refusals.ask([] { throw Error("read", "x", EIO); }), Error);
  for (const char* object : {"a", "b", "a"}) refusals.ask([&] { throw Refusal(object, "do something"); });
  Refusals outer;
  outer.ask([&] { refusals.demand_none(); });
  outer.ask([] { throw Refusal("c", "do something"); });
  try {
    outer.demand_none();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const AllRefusals& e) {
    EXPECT_STREQ(e.what(), "a; do something");
    ASSERT_EQ(e.others().size(), 2u);
    EXPECT_STREQ(e.others()[0].what(), "b; do something");
    EXPECT_STREQ(e.others()[1].what(), "c; do something");
  }
  EXPECT_THROW(outer.ask([] { throw Error("read", "x", EIO); }), AllRefusals) << "what is known is told";
  Refusals many;
  const auto refuse_each = [&] {
    for (int i = 0; i < 1000; ++i) many.ask([&] { throw Refusal(std::to_string(i), "do something"); });
  };
  EXPECT_THROW(refuse_each(), AllRefusals) << "a hostile tree has no end of them";
}

TEST(Pidfd, GivesADuplicateOfTheSameDescription) {
  const auto self = open_pidfd(::getpid());
  ASSERT_TRUE(self);
  const Fd file = open_path("/dev/null", O_RDONLY);
  const Fd copy = get_remote_fd(self->get(), file.get());
  EXPECT_TRUE(same_description(::getpid(), file.get(), ::getpid(), copy.get()));
  const Fd other = open_path("/dev/null", O_RDONLY);
  EXPECT_FALSE(same_description(::getpid(), file.get(), ::getpid(), other.get()));
}

TEST(Pidfd, NoSuchProcessIsAnOutcome) { EXPECT_FALSE(open_pidfd(0x3ffffff)); }

TEST(Fds, TravelOverASocket) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const Fd a(pair[0]), b(pair[1]);
  const Fd null = open_path("/dev/null", O_RDONLY);
  const int sent[] = {null.get(), null.get()};
  send_fds(a.get(), as_bytes_of("hello"), sent);
  std::vector<std::byte> bytes;
  std::vector<Fd> fds;
  ASSERT_TRUE(recv_fds(b.get(), bytes, fds, 64));
  EXPECT_EQ(bytes.size(), 5u);
  ASSERT_EQ(fds.size(), 2u);
  EXPECT_TRUE(same_description(::getpid(), null.get(), ::getpid(), fds[1].get()));
}

TEST(Standby, WorksOnceOrNotAtAll) {
  { const Standby never; }
  std::future<void> end;
  std::atomic<int> done = 0;
  {
    Standby one, other;
    end = one.begin([&] { ++done; });
    EXPECT_THROW(other.begin([] { throw Error("work", "", EIO); }).get(), Error);
  }
  end.get();
  EXPECT_EQ(done, 1);
}

TEST(Errors, NameWhatAndWhy) {
  EXPECT_STREQ(Error("open", "/x", ENOENT).what(), "open /x: No such file or directory");
  EXPECT_STREQ(Refusal("task 1 has fd 2, a tty", "close it").what(), "task 1 has fd 2, a tty; close it");
  EXPECT_THROW(open_path("/nonexistent", O_RDONLY), Error);
}

TEST(Features, WhatThisProjectNeedsIsProbedByDoing) {
  for (const Feature& f : probe_features()) {
    if (f.required) {
      EXPECT_TRUE(f.present) << f.name << ": " << f.use << "; " << f.remedy;
    }
    for (const std::string* text : {&f.use, &f.without, &f.remedy}) EXPECT_FALSE(text->empty()) << f.name;
  }
  for (const std::string& c : missing_capabilities()) EXPECT_NE(c, "CAP_SYS_RESOURCE");
}

}  // namespace
}  // namespace migrate
