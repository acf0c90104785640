#include "core/task/xsave.h"

#include <cpuid.h>

#include <array>
#include <cstring>

#include "core/base/error.h"

namespace migrate {
namespace {

// Intel SDM volume 1, chapter 13: the legacy region (FXSAVE) has 512 bytes, the header 64. The kernel keeps the mask of
// components it supports in the first of the bytes that FXSAVE leaves to software (arch/x86/include/asm/sigcontext).
constexpr size_t kLegacyBytes = 512, kHeaderBytes = 64, kMinBytes = kLegacyBytes + kHeaderBytes;
constexpr size_t kStateBvAt = 512, kSoftwareMaskAt = 464, kSoftwareBytes = 96;
constexpr unsigned kYmm = 2, kBndRegs = 3, kBndCsr = 4, kOpmask = 5, kZmmUpper = 6, kHi16Zmm = 7, kPkru = 9;
constexpr uint64_t kKnown =
    0b11 | 1u << kYmm | 1u << kBndRegs | 1u << kBndCsr | 1u << kOpmask | 1u << kZmmUpper | 1u << kHi16Zmm | 1u << kPkru;

struct Place {
  size_t offset = 0, size = 0;  ///< in the standard format; size 0: this CPU does not have the component
};

/// CPUID is asked once a process: in a virtual machine each question leaves it, and takes 20 to 70 us.
Place place_of(unsigned component) {
  static const std::array<Place, kPkru + 1> kPlaces = [] {
    std::array<Place, kPkru + 1> places{};
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    for (unsigned i = kYmm; i < places.size(); ++i)
      if (__get_cpuid_count(0xd, i, &eax, &ebx, &ecx, &edx) != 0) places[i] = {ebx, eax};
    return places;
  }();
  return kPlaces.at(component);
}

/// Bytes for the components that are enabled in XCR0.
size_t area_bytes() {
  static const size_t kBytes = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    __get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx);
    return std::max<size_t>(ebx, kMinBytes);
  }();
  return kBytes;
}

template <class T>
T load(std::span<const std::byte> area, size_t at) {
  T value;
  std::memcpy(&value, area.data() + at, sizeof value);
  return value;
}

template <class T>
void store(std::span<std::byte> area, size_t at, T value) {
  std::memcpy(area.data() + at, &value, sizeof value);
}

template <class Field>
void load_array(std::span<const std::byte> area, size_t at, size_t bytes, Field* out) {
  using T = typename Field::value_type;
  for (size_t i = 0; i < bytes / sizeof(T); ++i) out->Add(load<T>(area, at + i * sizeof(T)));
}

template <class Field>
void store_array(const Field& in, std::span<std::byte> area, size_t at, size_t bytes, const char* name) {
  using T = typename Field::value_type;
  if (static_cast<size_t>(in.size()) * sizeof(T) != bytes)
    throw Corrupt("a core image", std::string(name) + " has the wrong length");
  for (const T value : in) {
    store(area, at, value);
    at += sizeof(T);
  }
}

/// Calls `each(component, repeated field, name)` for every component CRIU has a field for.
template <class Xsave, class Each>
void for_each_component(Xsave& x, const Each& each) {
  if constexpr (std::is_const_v<Xsave>) {
    each(kYmm, x.ymmh_space(), "ymmh_space");
    each(kBndRegs, x.bndreg_state(), "bndreg_state");
    each(kBndCsr, x.bndcsr_state(), "bndcsr_state");
    each(kOpmask, x.opmask_reg(), "opmask_reg");
    each(kZmmUpper, x.zmm_upper(), "zmm_upper");
    each(kHi16Zmm, x.hi16_zmm(), "hi16_zmm");
    each(kPkru, x.pkru(), "pkru");
  } else {
    each(kYmm, x.mutable_ymmh_space(), "ymmh_space");
    each(kBndRegs, x.mutable_bndreg_state(), "bndreg_state");
    each(kBndCsr, x.mutable_bndcsr_state(), "bndcsr_state");
    each(kOpmask, x.mutable_opmask_reg(), "opmask_reg");
    each(kZmmUpper, x.mutable_zmm_upper(), "zmm_upper");
    each(kHi16Zmm, x.mutable_hi16_zmm(), "hi16_zmm");
    each(kPkru, x.mutable_pkru(), "pkru");
  }
}

std::string component_name(unsigned component) {
  switch (component) {
    case 8:
      return "processor trace";
    case 11:
    case 12:
      return "shadow stack (CET)";
    case 17:
    case 18:
      return "AMX tile";
    case 19:
      return "APX register";
    default:
      return "XSAVE component " + std::to_string(component);
  }
}

}  // namespace

bool pack_xsave(std::span<const std::byte> area, img::user_x86_fpregs_entry& out, std::string& unknown) {
  if (area.size() < kMinBytes) throw Corrupt("the XSAVE area", "it is too short");
  const auto in_use = load<uint64_t>(area, kStateBvAt);
  for (unsigned component = 0; component < 63; ++component) {
    if ((in_use & ~kKnown & uint64_t{1} << component) == 0) continue;
    unknown = component_name(component);
    return false;
  }
  out.set_cwd(load<uint16_t>(area, 0));
  out.set_swd(load<uint16_t>(area, 2));
  out.set_twd(load<uint16_t>(area, 4));
  out.set_fop(load<uint16_t>(area, 6));
  out.set_rip(load<uint64_t>(area, 8));
  out.set_rdp(load<uint64_t>(area, 16));
  out.set_mxcsr(load<uint32_t>(area, 24));
  out.set_mxcsr_mask(load<uint32_t>(area, 28));
  load_array(area, 32, 128, out.mutable_st_space());
  load_array(area, 160, 256, out.mutable_xmm_space());
  load_array(area, 416, kSoftwareBytes, out.mutable_padding());

  img::user_x86_xsave_entry& x = *out.mutable_xsave();
  x.set_xstate_bv(in_use);
  const auto supported = load<uint64_t>(area, kSoftwareMaskAt);
  for_each_component(x, [&](unsigned component, auto* field, const char*) {
    const Place place = place_of(component);
    if ((supported & uint64_t{1} << component) == 0 || place.size == 0 || place.offset + place.size > area.size())
      return;
    load_array(area, place.offset, place.size, field);
  });
  return true;
}

std::vector<std::byte> unpack_xsave(const img::user_x86_fpregs_entry& in) {
  std::vector<std::byte> area(area_bytes());
  const std::span<std::byte> out(area);
  store(out, 0, static_cast<uint16_t>(in.cwd()));
  store(out, 2, static_cast<uint16_t>(in.swd()));
  store(out, 4, static_cast<uint16_t>(in.twd()));
  store(out, 6, static_cast<uint16_t>(in.fop()));
  store(out, 8, static_cast<uint64_t>(in.rip()));
  store(out, 16, static_cast<uint64_t>(in.rdp()));
  store(out, 24, static_cast<uint32_t>(in.mxcsr()));
  store(out, 28, static_cast<uint32_t>(in.mxcsr_mask()));
  store_array(in.st_space(), out, 32, 128, "st_space");
  store_array(in.xmm_space(), out, 160, 256, "xmm_space");
  if (!in.has_xsave()) {
    store(out, kStateBvAt, uint64_t{0b11});
    return area;
  }
  const img::user_x86_xsave_entry& x = in.xsave();
  const uint64_t in_use = x.xstate_bv();
  if ((in_use & ~kKnown) != 0) throw Corrupt("a core image", "it uses an unknown XSAVE component");
  store(out, kStateBvAt, in_use);
  for_each_component(x, [&](unsigned component, const auto& field, const char* name) {
    const Place place = place_of(component);
    const bool here = place.size != 0 && place.offset + place.size <= area.size();
    if (here && !field.empty()) return store_array(field, out, place.offset, place.size, name);
    if ((in_use & uint64_t{1} << component) == 0) return;
    if (!here)
      throw Refusal(std::string("a thread uses CPU state (") + name + ") that this CPU does not have",
                    "restore on a host with the same CPU features");
    throw Corrupt("a core image", std::string(name) + " is missing");
  });
  return area;
}

}  // namespace migrate
