// The visit that makes a userfaultfd: the task goes on undisturbed and has no such descriptor, whatever happens to us.
#include "core/inject/userfaultfd_visit.h"

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "core/base/kernel_abi.h"
#include "core/base/procfs.h"
#include "tests/core/forked_programs.h"

namespace migrate {
namespace {

constexpr uint64_t kFeatures = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED;

struct Shared {
  std::atomic<uint64_t> progress[2]{};
  std::atomic<uint32_t> damage{0};
};

/// A program with two threads that count; one keeps a value in its registers.
class UserfaultfdVisitTest : public testing::Test {
 protected:
  UserfaultfdVisitTest() {
    shared_ = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      std::thread([&] {
        for (;;) {
          ::usleep(300);
          ++shared_->progress[1];
        }
      }).detach();
      for (uint64_t n = 1;; ++n)
        if (shared_->progress[0].fetch_add(1) != n - 1) ++shared_->damage;
    }
    EXPECT_TRUE(goes_on());
  }
  ~UserfaultfdVisitTest() override {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(shared_, sizeof(Shared));
  }
  bool goes_on() {
    const uint64_t a = shared_->progress[0], b = shared_->progress[1];
    return eventually([&] { return shared_->progress[0] > a + 100 && shared_->progress[1] > b + 2; });
  }
  std::string maps() const { return ProcDir(pid_).read("maps"); }
  Fd visit(const FaultHook& hook = {}) {
    const LoggerPtr log = null_logger();
    StoppedTree stopped(Pid(pid_), {.descendants = false}, *log);
    return make_userfaultfd(stopped.root(), kFeatures, *log, hook);
  }
  /// The visit by a process of its own, which is killed at stage `stage` of it. Returns how many stages there were.
  unsigned visit_and_die(unsigned stage) {
    auto* count = static_cast<std::atomic<unsigned>*>(
        ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const pid_t visitor = ::fork();
    if (visitor == 0) {
      visit([&](const char*) {
        if ((*count)++ == stage) ::raise(SIGKILL);
      });
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(visitor, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << status;
    const unsigned stages = *count;
    ::munmap(count, kPageSize);
    return stages;
  }

  Shared* shared_;
  pid_t pid_;
};

TEST_F(UserfaultfdVisitTest, GivesADescriptorThatTheTaskHasNot) {
  const std::string before = maps();
  const std::vector<int> descriptors = ProcDir(pid_).descriptors();
  const Fd uffd = visit();
  EXPECT_EQ(ProcDir(pid_).descriptors(), descriptors);
  EXPECT_EQ(maps(), before);
  EXPECT_TRUE(goes_on());
  // It is for that task's memory.
  const std::string text =
      before.substr(before.find("[stack]") == std::string::npos ? 0 : before.rfind('\n', before.find("[stack]")) + 1);
  uffdio_register reg{};
  char* end = nullptr;
  reg.range.start = std::strtoull(text.c_str(), &end, 16);
  reg.range.len = std::strtoull(end + 1, nullptr, 16) - reg.range.start;
  reg.mode = UFFDIO_REGISTER_MODE_WP;
  EXPECT_EQ(::ioctl(uffd.get(), UFFDIO_REGISTER, &reg), 0) << text.substr(0, 60);
  EXPECT_TRUE(goes_on());
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(UserfaultfdVisitTest, OurDeathAtAnyStageLeavesTheTaskAsItWas) {
  const std::string before = maps();
  const std::vector<int> descriptors = ProcDir(pid_).descriptors();
  unsigned stages = 1;
  for (unsigned stage = 0; stage < stages; ++stage) {
    const unsigned seen = visit_and_die(stage);
    stages = std::max(stages, seen == stage + 1 ? seen + 1 : seen);
    EXPECT_TRUE(eventually([&] { return maps() == before; })) << "stage " << stage;
    EXPECT_EQ(ProcDir(pid_).descriptors(), descriptors) << "stage " << stage;
    ASSERT_TRUE(goes_on()) << "stage " << stage;
    if (seen <= stage) break;  // it was over before
  }
  EXPECT_GT(stages, 8u);
  EXPECT_EQ(shared_->damage, 0u);
}

TEST_F(UserfaultfdVisitTest, AFailureOfOursIsCured) {
  const std::string before = maps();
  const std::vector<int> descriptors = ProcDir(pid_).descriptors();
  EXPECT_THROW(visit([](const char* stage) {
                 if (std::string_view(stage) == "userfaultfd taken") throw Error("a failure of ours");
               }),
               Error);
  EXPECT_EQ(ProcDir(pid_).descriptors(), descriptors);
  EXPECT_EQ(maps(), before);
  EXPECT_TRUE(goes_on());
}

TEST_F(UserfaultfdVisitTest, ATaskWithoutRoomForADescriptorIsLeftAlone) {
  const rlimit none{0, 0};
  rlimit old{};
  ASSERT_EQ(::prlimit(pid_, RLIMIT_NOFILE, &none, &old), 0);
  const std::string before = maps();
  EXPECT_THROW(visit(), Error);
  EXPECT_EQ(maps(), before);
  EXPECT_TRUE(goes_on());
}

}  // namespace
}  // namespace migrate
