#include "migrate/session/wire/host_facts.h"

#include <cpuid.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <sstream>

#include "core/base/fd.h"
#include "core/freeze/memory_room.h"
#include "migrate/session/journal/journal.h"

namespace migrate {
namespace {

constexpr std::array kFeatures = {"stop-and-copy", "own-namespaces", "reserve",
                                  "postcopy",      "huge-pages",     "lazy-shared"};
constexpr const char* kLz4Feature = "pages-lz4";
constexpr const char* kZstdFeature = "pages-zstd";
constexpr uint32_t kLz4Bit = 1, kZstdBit = 2;

uint64_t number_in(const std::string& path) {
  return std::strtoull(read_file_at(AT_FDCWD, path, 4096).c_str(), nullptr, 10);
}

/// The flags of the first processor that /proc/cpuinfo lists.
void add_cpu_flags(wire::Hello& hello) {
  std::istringstream lines(read_file_at(AT_FDCWD, "/proc/cpuinfo"));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) hello.add_cpu_flags(word);
    return;
  }
}

/// XCR0: the register states that the kernel switched on (SDM volume 1, 13.3).
uint64_t xcr0() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return 0;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

/// Flags of /proc/cpuinfo that a program can see and use. The rest (power, virtualisation, bugs, kernel policy) differ
/// between hosts without harm.
bool usable_flag(const std::string& flag) {
  static constexpr std::array kPrefixes = {"sse",    "ssse",    "avx", "amx", "fma",  "aes", "vaes",
                                           "pclmul", "vpclmul", "bmi", "sha", "gfni", "adx", "xsave"};
  static constexpr std::array kNames = {"popcnt",     "movbe",   "f16c",     "rdrand",  "rdseed",    "lzcnt",
                                        "abm",        "erms",    "fsrm",     "rdpid",   "rdtscp",    "cx16",
                                        "clflushopt", "clwb",    "cldemote", "movdiri", "movdir64b", "pku",
                                        "serialize",  "waitpkg", "fsgsbase"};
  return std::any_of(kPrefixes.begin(), kPrefixes.end(), [&](const char* p) { return flag.starts_with(p); }) ||
         std::find(kNames.begin(), kNames.end(), flag) != kNames.end();
}

}  // namespace

wire::Hello host_facts(bool packed_pages) {
  wire::Hello hello;
  hello.set_version(kProtocolVersion);
  for (const char* feature : kFeatures) hello.add_features(feature);
  if (packed_pages) {
    hello.add_features(kLz4Feature);
    hello.add_features(kZstdFeature);
  }
  hello.add_needs("stop-and-copy");
  hello.set_program("migrate");
  utsname name{};
  check(::uname(&name), "read", "the host's name");
  hello.set_host(name.nodename);
  hello.set_machine(name.machine);
  hello.set_kernel(name.release);
  hello.set_boot_id(boot_id());
  hello.set_pid_max(number_in("/proc/sys/kernel/pid_max"));
  hello.set_memory_available(memory_available());
  add_cpu_flags(hello);
  hello.set_xsave_features(xcr0());
  hello.set_page_size(static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
  return hello;
}

CodecSet page_codecs(const wire::Hello& peer) {
  CodecSet codecs;
  for (const std::string& feature : peer.features()) {
    codecs.lz4 = codecs.lz4 || feature == kLz4Feature;
    codecs.zstd = codecs.zstd || feature == kZstdFeature;
  }
  return codecs;
}

uint32_t to_wire(CodecSet codecs) { return (codecs.lz4 ? kLz4Bit : 0) | (codecs.zstd ? kZstdBit : 0); }

CodecSet codecs_from_wire(uint32_t bits) { return {.lz4 = (bits & kLz4Bit) != 0, .zstd = (bits & kZstdBit) != 0}; }

void check_hello_version(const wire::Hello& peer) {
  if (peer.version() != kProtocolVersion) {
    throw Refusal("the peer speaks version " + std::to_string(peer.version()) +
                      " of the migration protocol, we speak " + std::to_string(kProtocolVersion),
                  "install the same version of migrate on both hosts");
  }
  for (const std::string& need : peer.needs()) {
    if (std::find(kFeatures.begin(), kFeatures.end(), need) == kFeatures.end()) {
      throw Refusal("the peer needs the feature " + need + ", which this migrate lacks",
                    "install the same version of migrate on both hosts");
    }
  }
}

namespace {

/// Words of the source's list that the destination's lacks.
std::string missing_flags(const wire::Hello& source, const wire::Hello& destination) {
  const std::set<std::string> there(destination.cpu_flags().begin(), destination.cpu_flags().end());
  std::string missing;
  for (const std::string& flag : source.cpu_flags()) {
    if (usable_flag(flag) && !there.contains(flag)) missing += (missing.empty() ? "" : ", ") + flag;
  }
  return missing;
}

constexpr const char* kNoTree = "no program of the source can run there";

std::vector<Feature> compare_processors(const wire::Hello& source, const wire::Hello& destination) {
  std::vector<Feature> all;
  const bool same_machine = source.machine() == destination.machine();
  all.push_back({"machine", true, same_machine, "programs for the same kind of processor", kNoTree,
                 "choose a " + source.machine(),
                 same_machine
                     ? "both are " + source.machine()
                     : "the destination is a " + destination.machine() + ", the source a " + source.machine()});
  const bool same_pages = source.page_size() == destination.page_size();
  all.push_back({"page_size", true, same_pages, "memory in the same pages", kNoTree,
                 "choose a host with pages of " + std::to_string(source.page_size()) + " bytes",
                 same_pages ? "both have pages of " + std::to_string(source.page_size()) + " bytes"
                            : "the hosts have pages of different sizes"});
  const bool states = (source.xsave_features() & ~destination.xsave_features()) == 0;
  all.push_back({"register_state", true, states, "the contents of registers", kNoTree, "choose a host that has it",
                 states ? "the destination has all register state that the source has (XCR0)"
                        : "the destination's kernel or processor lacks register state that the source has (XCR0)"});
  const std::string missing = missing_flags(source, destination);
  all.push_back({"processor", true, missing.empty(), "instructions that programs may use", kNoTree,
                 "choose a host that has it",
                 missing.empty() ? "the destination's processor has all that the source's has"
                                 : "the destination's processor lacks " + missing});
  return all;
}

}  // namespace

std::vector<Feature> compare_hosts(const wire::Hello& source, const wire::Hello& destination) {
  std::vector<Feature> all = compare_processors(source, destination);
  const bool same_kernel = source.kernel() == destination.kernel();
  all.push_back(
      {"kernel", false, same_kernel, "the same layout of the vdso",
       "programs are refused if their vdso is laid out differently there", "use the same kernel on both hosts",
       same_kernel ? "both run Linux " + source.kernel()
                   : "the source runs Linux " + source.kernel() + ", the destination " + destination.kernel()});
  const bool all_pids = source.pid_max() <= destination.pid_max();
  all.push_back({"pid_max", false, all_pids, "giving tasks their pids back",
                 "programs with a greater pid cannot be received",
                 "set kernel.pid_max to " + std::to_string(source.pid_max()) + " there",
                 "pids are up to " + std::to_string(destination.pid_max()) + " there"});
  const CodecSet codecs = page_codecs(destination);
  all.push_back({"compress", false, codecs.lz4 || codecs.zstd, "packed pages (`send --compress`)",
                 "pages go as they are", "start the receiver without --no-compress",
                 std::string("the destination takes ") + (codecs.lz4    ? codecs.zstd ? "lz4 and zstd" : "lz4"
                                                          : codecs.zstd ? "zstd"
                                                                        : "no packed pages")});
  const auto& features = destination.features();
  const bool reserves = std::find(features.begin(), features.end(), "reserve") != features.end();
  all.push_back({"reserve", false, reserves, "making memory ready before a program is stopped",
                 "`send --mode stop-copy` stops it for longer", "install the same version of migrate on both hosts",
                 ""});
  return all;
}

std::vector<Feature> incompatibilities(const wire::Hello& source, const wire::Hello& destination) {
  std::vector<Feature> all = compare_hosts(source, destination);
  std::erase_if(all, [](const Feature& fact) { return !fact.required || fact.present; });
  return all;
}

}  // namespace migrate
