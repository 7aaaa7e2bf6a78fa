#include "kernels.h"
namespace S3D_VARIANT { int field_forward(const S3dField&, int) { return S3D_BAD_SIZE; } }
