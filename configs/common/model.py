"""The models; SDMatte.modeling.settings documents the settings."""

from detectron2.config import LazyCall as L

from SDMatte.modeling import LiteSDMatte, SDMatte
from SDMatte.modeling.lite import PROMPT_MIX
from SDMatte.modeling.losses import MattingCriterion

model = L(SDMatte)(
    # A Stable Diffusion v2 folder prepared by process_weight.py.
    pretrained_model_name_or_path="pretrained/SDMatte",
    load_weight=True,
    conv_scale=3,
    # None: training draws from aux_input_list at each step. test.prompts selects those for tests.
    aux_input=None,
    aux_input_list=["point_mask", "bbox_mask", "mask"],
    attn_mask_aux_input=["point_mask", "bbox_mask", "mask"],
    use_coor_input=True,
    use_opacity_input=True,
    use_attention_mask=True,
    use_attention_mask_list=[True, True, True],
    use_encoder_hidden_states=True,
    use_encoder_hidden_states_list=[False, True, False],
    residual_connection=False,
)

lite_model = L(LiteSDMatte)(
    **{key: value for key, value in model.items() if not key.startswith("_")},
)
lite_model.pretrained_model_name_or_path = "pretrained/LiteSDMatte"
lite_model.aux_input_list = list(PROMPT_MIX)

criterion = L(MattingCriterion)(
    losses=["unknown_l1_loss", "known_l1_loss", "known_lap_loss", "unknown_lap_loss"],
    size="${dataloader.train.dataset.size}",
)
