// What a visited program answers, in memory that it shares and can write: the area of a visit with its timers (first
// byte 0), the number of a descriptor (1), registers and memory of an interrupted call (2), and what its code looks
// like where the visit wants to put its own (3).
#include <elf.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/dump/tree_images.h"
#include "core/inject/answers.h"
#include "core/inject/visit_places.h"
#include "core/restore/namespaces.h"
#include "core/task/restart.h"
#include "fuzz.h"

namespace migrate::fuzz {
namespace {

enum Kind : uint8_t { kArea, kDescriptor, kCall, kPlaces };

constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr Pid kPid{42};
constexpr Tid kTid{42};

class Input {
 public:
  explicit Input(std::span<const std::byte> bytes) : bytes_(bytes) {}
  /// The rest is zeros.
  template <class T>
  T take() {
    T value{};
    const size_t size = std::min(sizeof value, bytes_.size());
    std::memcpy(static_cast<void*>(&value), bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return value;
  }
  std::span<const std::byte> rest() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

template <class Work>
void attempt(const Work& work) {
  try {
    work();
  } catch (const Error&) {  // as it should be
  }
}

void check_thread(const ThreadHarvest& h) {
  demand(h.tid == kTid && h.pdeath_signal >= 0 && h.pdeath_signal <= 64, "a thread that cannot be");
}

void check_task(const TaskHarvest& h) {
  for (const itimerval& t : h.itimers)
    for (const timeval& part : {t.it_interval, t.it_value})
      demand(
          part.tv_sec >= 0 && part.tv_sec <= INT64_MAX / kNsPerSecond && part.tv_usec >= 0 && part.tv_usec < 1'000'000,
          "a timer that cannot be set");
  demand(h.mdwe <= 3 && h.lock_future <= 6, "what it denies or locks is out of range");
  demand(h.dumpable >= 0 && h.dumpable <= 2 && h.membarrier_registrations >= 0, "flags out of range");
  demand(h.brk <= 0x7fff'ffff'f000, "a break outside of user space");
  // What leaves the source the destination takes.
  ImageSet images;
  write_timens(h, images);
  try {
    wanted_clocks(images, {});
  } catch (const Corrupt& e) {
    demand(false, e.what());
  }
}

void read_area(Input in) {
  const auto area = copy_once(in.take<parasite::Area>());
  attempt([&] { check_task(answered_task(area, kPid)); });
  attempt([&] { check_thread(answered_thread(area.leader, kTid, area.leader.pdeath_result)); });
  attempt([&] {
    user_regs_struct regs{};
    std::memcpy(&regs, &area.leader, sizeof area.leader);
    check_thread(answered_thread(area.thread, kTid, ThreadSlotResults(regs)));
  });
  for (int id = 0; !in.rest().empty(); ++id) {
    const auto timer = in.take<parasite::Timer>();
    attempt([&] {
      const TimerHarvest h = answered_timer(area, timer, id, kPid);
      demand(h.id == id && h.overrun >= 0 && h.read_ns >= 0 && h.doubt_ns >= 0, "a timer that cannot be");
      for (const timespec& part : {h.value.it_interval, h.value.it_value})
        demand(part.tv_sec >= 0 && part.tv_nsec >= 0 && part.tv_nsec < kNsPerSecond, "a time that cannot be");
    });
  }
}

/// What a thread's registers and memory make of an interrupted call.
struct Call {
  user_regs_struct regs;
  uint64_t sample_nr, sample_sp, sample_ip;
  uint64_t switches_before, switches_now;
  int64_t since_ns, now_ns;
  uint8_t sampled, pending, wchan;
};

void restart(Input in) {
  static const Fd memory(check(::memfd_create("fuzz", MFD_CLOEXEC), "make", "a memory file"));
  const auto call = in.take<Call>();
  const auto rest = in.rest().first(std::min<size_t>(in.rest().size(), 64));
  check(::ftruncate(memory.get(), 0), "empty", "a memory file");
  pwrite_full(memory.get(), rest, 0, "a memory file");
  constexpr std::array kChannels{"", "0", "do_sys_poll", "futex_wait_queue", "hrtimer_nanosleep"};
  // Those of the kernel are no input: now is after then.
  constexpr int64_t kMostNs = int64_t{1} << 62;
  SleepSample sample;
  sample.call.nr = static_cast<long>(call.sample_nr);
  sample.call.sp = call.sample_sp;
  sample.call.ip = call.sample_ip;
  sample.voluntary_switches = call.switches_before;
  sample.since_ns = std::clamp<int64_t>(call.since_ns, 0, kMostNs);
  sample.wchan = kChannels[call.wchan % kChannels.size()];
  RestartFacts facts;
  facts.sample = call.sampled % 2 != 0 ? &sample : nullptr;
  facts.voluntary_switches = call.switches_now;
  facts.signal_pending = call.pending % 2 != 0;
  facts.as_of_ns = std::clamp<int64_t>(call.now_ns, 0, kMostNs);
  facts.mem_fd = memory.get();
  const ImageRegisters made = image_registers(call.regs, facts);
  if (made.restart && made.restart->has_remaining_ns())
    demand(made.restart->remaining_ns() <= static_cast<uint64_t>(INT64_MAX), "a sleep without end");
}

/// The text of maps up to a zero, then the contents of the first mapping with code, from its end backwards.
void find_places(std::span<const std::byte> bytes) {
  static const Fd memory(check(::memfd_create("fuzz", MFD_CLOEXEC), "make", "a memory file"));
  const auto zero = std::find(bytes.begin(), bytes.end(), std::byte{0});
  const auto length = static_cast<size_t>(zero - bytes.begin());
  const std::vector<MapsLine> maps = parse_maps({reinterpret_cast<const char*>(bytes.data()), length});
  auto contents = zero == bytes.end() ? std::span<const std::byte>() : bytes.subspan(length + 1);
  const auto code = std::find_if(maps.begin(), maps.end(), [](const MapsLine& m) { return m.permissions == "r-xp"; });
  check(::ftruncate(memory.get(), 0), "empty", "a memory file");
  check(::ftruncate(memory.get(), off_t{1} << 47), "extend", "a memory file");
  if (code != maps.end() && code->range.end.get() <= uint64_t{1} << 47) {
    contents = contents.last(std::min<size_t>(contents.size(), code->range.bytes()));
    pwrite_full(memory.get(), contents, code->range.end.get() - contents.size(), "a memory file");
  }
  constexpr size_t kBytes = 0x6000;
  const VisitPlaces places = find_visit_places(kPid.get(), memory.get(), maps, kBytes);
  demand(places.area.bytes() == kBytes && places.slots.start.get() % 16 == 0, "no place");
  const auto around = std::find_if(maps.begin(), maps.end(), [&](const MapsLine& m) {
    return m.permissions == "r-xp" && m.range.start <= places.slots.start && places.slots.end <= m.range.end;
  });
  demand(around != maps.end(), "slots outside of code");
  std::vector<std::byte> old(places.slots.bytes());
  pread_full(memory.get(), old, places.slots.start.get(), "a memory file");
  const auto magic = as_bytes_of(kSlotMagic);
  demand(std::equal(magic.begin(), magic.end(), old.begin()) ||
             std::all_of(old.begin(), old.end(), [](std::byte b) { return b == std::byte{0}; }),
         "slots over something");
}

std::vector<std::byte> places_seed(bool with_magic, const std::string& name) {
  std::vector<std::byte> out(1, std::byte{kPlaces});
  const std::string text = "7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0                          " + name +
                           "\nffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
  const auto bytes = as_bytes_of(text);
  out.insert(out.end(), bytes.begin(), bytes.end());
  out.push_back(std::byte{0});
  std::vector<std::byte> image(2 * kPageSize);
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_shoff = 0x600;
  header.e_shnum = 4;
  header.e_shentsize = sizeof(Elf64_Shdr);
  std::memcpy(image.data(), &header, sizeof header);
  std::fill(image.begin() + sizeof header, image.begin() + 0x600, std::byte{0x90});
  const auto magic = as_bytes_of(kSlotMagic);
  if (with_magic) std::copy(magic.begin(), magic.end(), image.begin() + 0x800);
  out.insert(out.end(), image.begin(), image.end());
  return out;
}

template <class T>
void append(std::vector<std::byte>& out, const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

std::vector<std::byte> area_seed() {
  parasite::Area area{};
  area.done = 1;
  area.sigactions[1] = {0x401000, 0x14000004, 0x402000, 2};
  area.itimers[0] = {1, 500'000, 0, 250'000};
  area.dumpable = 1;
  area.brk = 0x5555'5577'0000;
  area.membarrier = 16;
  area.monotonic = {1000, 5};
  area.boottime = {2000, 6};
  area.leader.altstack = {0x7fff'0000, 0, 0, 8192};
  area.thread.altstack = {0, 2, 0, 0};
  area.leader.pdeath_signal = 15;
  std::vector<std::byte> out(1, std::byte{kArea});
  append(out, area);
  append(out, parasite::Timer{0, 3, 0, 1, 0, 0, 500});
  append(out, parasite::Timer{1, 0, -22, 0, 0, 0, 0});
  return out;
}

std::vector<std::byte> call_seed(uint64_t nr, int64_t result, uint8_t wchan) {
  Call call{};
  call.regs.orig_rax = nr;
  call.regs.rax = static_cast<uint64_t>(result);
  call.regs.rsp = 0x7ffd'0000;
  call.regs.rip = 0x40'1002;
  call.regs.rdi = call.regs.rdx = call.regs.r10 = call.regs.r8 = 16;
  call.sample_nr = nr;
  call.sample_sp = call.regs.rsp;
  call.sample_ip = call.regs.rip;
  call.switches_now = 1;
  call.since_ns = kNsPerSecond;
  call.now_ns = 2 * kNsPerSecond;
  call.sampled = 1;
  call.wchan = wchan;
  std::vector<std::byte> out(1, std::byte{kCall});
  append(out, call);
  for (int i = 0; i < 3; ++i) append(out, timespec{5, 500});
  return out;
}

}  // namespace

const Target kTarget{"answers_fuzz", false};

void run(std::span<const std::byte> input) {
  if (input.empty()) return;
  const Input in(input.subspan(1));
  switch (std::to_integer<uint8_t>(input[0])) {
    case kArea:
      return read_area(in);
    case kDescriptor:
      return attempt([&] { demand(answered_userfaultfd(Input(in).take<int64_t>(), kPid) >= 0, "no descriptor"); });
    case kCall:
      return restart(in);
    case kPlaces:
      return attempt([&] { find_places(in.rest()); });
    default:
      return;
  }
}

std::vector<std::vector<std::byte>> seeds() {
  constexpr int64_t kRestartBlock = -516, kRestartNoHand = -514;
  std::vector<std::vector<std::byte>> all{area_seed()};
  for (const int64_t number : {int64_t{7}, int64_t{-24}, INT64_MIN, int64_t{1} << 32}) {
    all.emplace_back(1, std::byte{kDescriptor});
    append(all.back(), number);
  }
  for (const uint64_t nr : {SYS_nanosleep, SYS_clock_nanosleep, SYS_poll, SYS_futex, SYS_restart_syscall})
    for (uint8_t wchan = 0; wchan < 5; ++wchan) all.push_back(call_seed(nr, kRestartBlock, wchan));
  for (const uint64_t nr : {SYS_epoll_wait, SYS_epoll_pwait2, SYS_semtimedop, SYS_rt_sigtimedwait, SYS_io_getevents})
    all.push_back(call_seed(nr, -EINTR, 0));
  all.push_back(call_seed(SYS_read, kRestartNoHand, 0));
  for (const char* name : {"[vdso]", "/lib/x86_64-linux-gnu/libc.so.6"})
    for (const bool with_magic : {false, true}) all.push_back(places_seed(with_magic, name));
  return all;
}

}  // namespace migrate::fuzz
