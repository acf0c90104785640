// Magic numbers of CRIU's image format, version 2 (see core/DESIGN.md). All integers on disk are little-endian.
#pragma once

#include <cstdint>

namespace migrate::magic {

inline constexpr uint32_t kCommon = 0x54564319;
inline constexpr uint32_t kService = 0x55105940;
inline constexpr uint32_t kRaw = 0;  ///< no header at all
inline constexpr uint32_t kInventory = 0x58313116;
inline constexpr uint32_t kFdinfo = 0x56213732;
inline constexpr uint32_t kPagemap = 0x56084025;
inline constexpr uint32_t kCore = 0x55053847;
inline constexpr uint32_t kIds = 0x54432030;
inline constexpr uint32_t kPstree = 0x50273030;
inline constexpr uint32_t kFiles = 0x56303138;
inline constexpr uint32_t kMm = 0x57492820;
inline constexpr uint32_t kFs = 0x51403912;
inline constexpr uint32_t kCreds = 0x54023547;
inline constexpr uint32_t kPipesData = 0x56453709;
inline constexpr uint32_t kFifoData = 0x59333054;
inline constexpr uint32_t kSigact = 0x55344201;
inline constexpr uint32_t kSignal = 0x59255647;
inline constexpr uint32_t kItimers = 0x57464056;
inline constexpr uint32_t kPosixTimers = 0x52603957;
inline constexpr uint32_t kSkQueues = 0x56264026;
inline constexpr uint32_t kUtsns = 0x54473203;
inline constexpr uint32_t kIpcVar = 0x53115007;
inline constexpr uint32_t kIpcShm = 0x46283044;
inline constexpr uint32_t kIpcMsg = 0x55453737;
inline constexpr uint32_t kIpcSem = 0x59573019;
inline constexpr uint32_t kRemapFpath = 0x59133954;
inline constexpr uint32_t kGhostFile = 0x52583605;
inline constexpr uint32_t kTcpStream = 0x51465506;
inline constexpr uint32_t kTtyInfo = 0x59453036;
inline constexpr uint32_t kTtyData = 0x59413026;
inline constexpr uint32_t kFileLocks = 0x54323616;
inline constexpr uint32_t kMnts = 0x55563928;
inline constexpr uint32_t kCgroup = 0x59383330;
inline constexpr uint32_t kCpuinfo = 0x61404013;
inline constexpr uint32_t kMemfdInode = 0x48453499;
inline constexpr uint32_t kTimens = 0x43114433;
inline constexpr uint32_t kPidns = 0x61157326;
inline constexpr uint32_t kSeccomp = 0x64413049;
inline constexpr uint32_t kStats = 0x57093306;
inline constexpr uint32_t kIrmapCache = 0x57004059;
inline constexpr uint32_t kMigrateExt = 0x4d494758;  ///< migrate-ext.img (proto/ext): ours, CRIU ignores it

}  // namespace migrate::magic
